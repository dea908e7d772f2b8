// publisher.mjs
import { randomUUID } from "node:crypto";
import { createClient } from "redis";

const prefix = "dreamnet:events:";

export async function publish(redis, type, payload, id = randomUUID()) {
  const event = JSON.stringify({ id, type, payload, timestamp: Date.now(), source: "node-shop" });
  await redis.set(`${prefix}event:${id}`, event, { EX: 86400 });
  await redis.publish(prefix + type, event);
  return id;
}

const redis = await createClient({ url: process.env.REDIS_URL }).connect();
console.log(await publish(redis, "order.placed", { order_id: "o-8", total: 5 }));
await redis.close();
