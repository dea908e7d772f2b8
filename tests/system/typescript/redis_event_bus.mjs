// Imitates the TypeScript event bus that shares its channels and keys with the bridge. It requires only Node and sends
// the same commands as that bus:
//
// - publish: SETEX of the event key, with the real source, on one connection; PUBLISH of the same event with the
//   source "RedisEventBus" on another. Their order is undefined.
// - subscribe: one PSUBSCRIBE for all channels with the prefix. Events with the source "RedisEventBus" are dropped,
//   because this process has already passed its own events to its handlers.
//
//   node redis_event_bus.mjs publish URL PREFIX TYPE COUNT [--duplicates N]
//       Publishes COUNT events, the first N of them a second time, and prints the id of each as it is acknowledged.
//   node redis_event_bus.mjs listen URL PREFIX PATTERN COUNT
//       Prints "ready" once subscribed, then each received event as one line of JSON, and exits after COUNT events.

import { randomUUID } from "node:crypto";
import { connect as openSocket } from "node:net";
import { pathToFileURL } from "node:url";

const BROADCAST_SOURCE = "RedisEventBus";
const EVENT_TTL_S = 86400;
const MAX_LOCAL_EVENTS = 1000;
const CONCURRENT_PUBLICATIONS = 100;

/** Returns the reply at `start` of `buffer` as `{ value, end }`; undefined if it is incomplete. Errors are values. */
function parseReply(buffer, start) {
  const lineEnd = buffer.indexOf("\r\n", start);
  if (lineEnd < 0) return undefined;
  const line = buffer.toString("utf8", start + 1, lineEnd);
  const next = lineEnd + 2;
  const kind = String.fromCharCode(buffer[start]);
  if (kind === "+") return { value: line, end: next };
  if (kind === "-") return { value: new Error(line), end: next };
  const number = Number(line); // for kind ":" the value, for the others the length
  if (kind === ":") return { value: number, end: next };
  if (number < 0) return { value: null, end: next };
  if (kind === "$") {
    if (buffer.length < next + number + 2) return undefined;
    return { value: buffer.toString("utf8", next, next + number), end: next + number + 2 };
  }
  if (kind !== "*") throw new Error(`not RESP2: ${kind}${line}`);
  const items = [];
  let end = next;
  for (let item; items.length < number; end = item.end) {
    item = parseReply(buffer, end);
    if (item === undefined) return undefined;
    items.push(item.value);
  }
  return { value: items, end };
}

/** A RESP2 connection. Commands are pipelined: each is sent at once, and replies arrive in order. */
class Connection {
  #socket;
  #received = Buffer.alloc(0);
  #waiting = [];

  /** Called with the text of every message of a pattern subscription. */
  onMessage = () => {};

  constructor(url) {
    const { hostname, port } = new URL(url);
    this.#socket = openSocket({ host: hostname, port: Number(port || 6379), noDelay: true });
    this.#socket.on("data", (chunk) => this.#receive(chunk));
    this.#socket.on("error", (error) => this.#fail(error));
    this.#socket.on("close", () => this.#fail(new Error("the connection was closed")));
  }

  command(...args) {
    const parts = args.map((arg) => `$${Buffer.byteLength(String(arg))}\r\n${arg}\r\n`);
    this.#socket.write(`*${args.length}\r\n${parts.join("")}`); // kept until the socket is connected
    return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
  }

  close() {
    this.#socket.end();
  }

  #receive(chunk) {
    this.#received = Buffer.concat([this.#received, chunk]);
    let start = 0;
    for (let reply; (reply = parseReply(this.#received, start)) !== undefined; start = reply.end) {
      this.#take(reply.value);
    }
    this.#received = this.#received.subarray(start);
  }

  #take(value) {
    if (Array.isArray(value) && value[0] === "pmessage") return this.onMessage(value[3]); // not a reply to a command
    const { resolve, reject } = this.#waiting.shift();
    if (value instanceof Error) reject(value);
    else resolve(value);
  }

  #fail(error) {
    for (const { reject } of this.#waiting.splice(0)) reject(error);
  }
}

/** Returns the pattern as a regular expression for the whole type; it supports only `*` of the Redis globs. */
function compilePattern(pattern) {
  const literals = pattern.split("*").map((literal) => literal.replace(/[^\w]/g, "\\$&"));
  return new RegExp(`^${literals.join(".*")}$`, "s");
}

export class RedisEventBus {
  #url;
  #prefix;
  #store;
  #publisher;
  #subscriber;
  #handlers = [];
  #events = new Map(); // by id, oldest first

  constructor(url, prefix) {
    this.#url = url;
    this.#prefix = prefix;
  }

  async connect() {
    [this.#store, this.#publisher, this.#subscriber] = [1, 2, 3].map(() => new Connection(this.#url));
    this.#subscriber.onMessage = (text) => this.#hear(JSON.parse(text));
    await this.#store.command("SELECT", new URL(this.#url).pathname.slice(1) || "0");
    await this.#subscriber.command("PSUBSCRIBE", `${this.#prefix}*`);
  }

  async publish(type, payload, source) {
    const correlationId = randomUUID();
    // No reader uses schemaVersion, but all readers must keep it.
    const event = { id: randomUUID(), type, payload, timestamp: Date.now(), source, correlationId, schemaVersion: 3 };
    await this.send(event);
    this.#take(event);
    return event;
  }

  /** Writes key and broadcast of an event; a second call imitates a publisher that lost the reply to the first one. */
  async send(event) {
    const broadcast = JSON.stringify({ ...event, source: BROADCAST_SOURCE });
    await Promise.all([
      this.#store.command("SETEX", `${this.#prefix}event:${event.id}`, EVENT_TTL_S, JSON.stringify(event)),
      this.#publisher.command("PUBLISH", this.#prefix + event.type, broadcast),
    ]);
  }

  subscribe(pattern, handler) {
    this.#handlers.push({ matches: compilePattern(pattern), handler });
  }

  async getEvent(id) {
    if (this.#events.has(id)) return this.#events.get(id);
    const text = await this.#store.command("GET", `${this.#prefix}event:${id}`);
    return text === null ? null : JSON.parse(text);
  }

  disconnect() {
    for (const connection of [this.#store, this.#publisher, this.#subscriber]) connection.close();
  }

  #hear(event) {
    if (event.source !== BROADCAST_SOURCE) this.#take(event); // also drops events of other processes, like that bus
  }

  #take(event) {
    this.#events.set(event.id, event);
    if (this.#events.size > MAX_LOCAL_EVENTS) this.#events.delete(this.#events.keys().next().value);
    for (const { matches, handler } of this.#handlers) if (matches.test(event.type)) handler(event);
  }
}

async function publishMany(bus, type, count, duplicates) {
  const publishOne = async (number) => {
    const event = await bus.publish(type, { dreamId: number, text: `Traum ${number} – 夢 🌙` }, "dream-service");
    if (number < duplicates) await bus.send(event);
    console.log(event.id);
  };
  const numbers = [...Array(count).keys()];
  while (numbers.length > 0) await Promise.all(numbers.splice(0, CONCURRENT_PUBLICATIONS).map(publishOne));
}

async function listen(bus, pattern, count) {
  let heard = 0;
  bus.subscribe(pattern, (event) => {
    if (heard < count) console.log(JSON.stringify(event));
    if (++heard === count) bus.disconnect(); // this ends the process
  });
  await bus.connect();
  console.log("ready");
}

async function main([command, url, prefix, typeOrPattern, count, option, duplicates]) {
  const bus = new RedisEventBus(url, prefix);
  if (command === "listen") return listen(bus, typeOrPattern, Number(count));
  if (command !== "publish" || ![undefined, "--duplicates"].includes(option)) throw new Error("see the usage on top");
  await bus.connect();
  await publishMany(bus, typeOrPattern, Number(count), Number(duplicates ?? 0));
  bus.disconnect();
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) await main(process.argv.slice(2));
