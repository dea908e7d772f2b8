<?php
// publisher.php
const PREFIX = "dreamnet:events:";

function publish(Redis $redis, string $type, array $payload, ?string $id = null): string
{
    $id ??= bin2hex(random_bytes(16));
    $event = json_encode([
        "id" => $id,
        "type" => $type,
        "payload" => $payload,
        "timestamp" => (int) (microtime(true) * 1000),
        "source" => "php-shop",
    ], JSON_THROW_ON_ERROR | JSON_PRESERVE_ZERO_FRACTION);
    $redis->set(PREFIX . "event:$id", $event, ["EX" => 86400]);
    $redis->publish(PREFIX . $type, $event);
    return $id;
}

$url = parse_url(getenv("REDIS_URL") ?: "redis://localhost:6379");
$redis = new Redis();
$redis->connect($url["host"], $url["port"]);
echo publish($redis, "order.placed", ["order_id" => "o-9", "total" => 7.5]), "\n";
