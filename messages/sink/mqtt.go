package sink

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"keystead/messages"
	"keystead/seal"
)

// mqttWait is how long the broker may take to answer.
const mqttWait = 10 * time.Second

// MQTT publishes messages to a broker, with quality of service 1: one is
// delivered when the broker has acknowledged it.
type MQTT struct {
	name   string
	topic  string
	client mqtt.Client
}

// NewMQTT returns a sink for the broker that c names. It connects with the first
// message, and again whenever the connection was lost.
func NewMQTT(c Config, password seal.Secret, conf *tls.Config) *MQTT {
	o := mqtt.NewClientOptions().
		AddBroker(c.URL).
		SetClientID(c.ClientID).
		SetUsername(c.Username).
		SetTLSConfig(conf).
		SetConnectTimeout(mqttWait).
		SetWriteTimeout(mqttWait).
		SetKeepAlive(30 * time.Second).
		SetAutoReconnect(false). // Deliver connects; the queue is ours
		SetCleanSession(true).
		SetOrderMatters(false)
	if password != nil {
		o.SetCredentialsProvider(func() (string, string) { return c.Username, string(password) })
	}
	return &MQTT{name: c.Name, topic: c.Topic, client: mqtt.NewClient(o)}
}

// Name returns the sink's name.
func (q *MQTT) Name() string { return q.name }

// Deliver publishes m and waits for the broker's acknowledgement.
func (q *MQTT) Deliver(ctx context.Context, m messages.Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("sink %s: %w", q.name, err)
	}
	if !q.client.IsConnectionOpen() {
		if err := q.wait(ctx, q.client.Connect()); err != nil {
			return fmt.Errorf("sink %s: connect: %w", q.name, err)
		}
	}
	if err := q.wait(ctx, q.client.Publish(topic(q.topic, m), 1, false, body)); err != nil {
		q.client.Disconnect(0) // whatever is under way is sent again, by us
		return fmt.Errorf("sink %s: publish: %w", q.name, err)
	}
	return nil
}

func (q *MQTT) wait(ctx context.Context, t mqtt.Token) error {
	select {
	case <-t.Done():
		return t.Error()
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(mqttWait):
		return errors.New("the broker does not answer")
	}
}

// topic fills in who sent m. What would change the topic's levels is left out
// of a name, which devices may have chosen.
func topic(pattern string, m messages.Message) string {
	level := strings.NewReplacer("/", "_", "+", "_", "#", "_", "\x00", "_")
	return strings.NewReplacer("{organisation}", level.Replace(m.Organisation), "{device}", level.Replace(m.Device), "{name}", level.Replace(m.Name)).Replace(pattern)
}

// Close disconnects.
func (q *MQTT) Close() error {
	if q.client.IsConnectionOpen() {
		q.client.Disconnect(250)
	}
	return nil
}
