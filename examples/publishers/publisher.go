// publisher.go
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const prefix = "dreamnet:events:"

func publish(ctx context.Context, client *redis.Client, eventType string, payload any) (string, error) {
	id := uuid.NewString()
	event, err := json.Marshal(map[string]any{
		"id": id, "type": eventType, "payload": payload, "timestamp": time.Now().UnixMilli(), "source": "go-shop",
	})
	if err != nil {
		return "", err
	}
	if err := client.Set(ctx, prefix+"event:"+id, event, 24*time.Hour).Err(); err != nil {
		return "", err
	}
	return id, client.Publish(ctx, prefix+eventType, event).Err()
}

func main() {
	options, err := redis.ParseURL(os.Getenv("REDIS_URL"))
	if err != nil {
		panic(err)
	}
	payload := map[string]any{"order_id": "o-10", "total": 10}
	id, err := publish(context.Background(), redis.NewClient(options), "order.placed", payload)
	if err != nil {
		panic(err)
	}
	fmt.Println(id)
}
