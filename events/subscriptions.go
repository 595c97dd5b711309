package events

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// SubscriptionPrefix stands before the type of a subscription in that of an event.
const SubscriptionPrefix = "lwm2m."

// Subscription is a webhook as clients of the CreatorDev device server know it: to
// one type of event, of one client or of all, unsigned.
type Subscription struct {
	Client string // its id; "" for all
	Type   string // "ClientConnected"
	URL    string
	Accept string // the media type of what is posted; "" for JSON
}

// Subscribe adds a subscription. It is a Conflict if there is the same already.
func (s *Service) Subscribe(ctx context.Context, n Subscription) (w Webhook, err error) {
	if err := s.checkSubscription(n); err != nil {
		return w, err
	}
	now := s.Now().UTC()
	w = Webhook{ID: id.New(now), Org: identity.OrgOf(ctx), Format: CreatorDev, CreatedAt: now}
	w.subscribe(n)
	w.Sealed = s.Box.Seal(w.place(), seal.NewSecret(32)) // as every webhook has one
	return w, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.another(tx, w); err != nil {
			return err
		}
		if err := webhooks.Insert(tx, w.ID, w); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "subscription.create", Target: w.ID})
	})
}

// Resubscribe replaces what a subscription is to.
func (s *Service) Resubscribe(ctx context.Context, subscriptionID string, n Subscription) error {
	if err := s.checkSubscription(n); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		w, err := s.subscription(ctx, tx, subscriptionID)
		if err != nil {
			return err
		}
		n.Client = w.Client
		w.subscribe(n)
		if err := s.another(tx, w); err != nil {
			return err
		}
		if err := webhooks.Set(tx, w.ID, w); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "subscription.update", Target: w.ID})
	})
}

// Subscriptions returns those of the actor's organisation, of one client if client
// is not empty, in the order they were made.
func (s *Service) Subscriptions(ctx context.Context, client string) (list []Webhook, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		all, err := webhooks.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), page.Request{Limit: MaxWebhooks})
		for _, w := range all.Items {
			if w.Format == CreatorDev && (client == "" || w.Client == client) {
				list = append(list, w)
			}
		}
		return err
	})
	return list, err
}

// Subscription returns one of the actor's organisation, or a NotFound fault.
func (s *Service) Subscription(ctx context.Context, subscriptionID string) (w Webhook, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		w, err = s.subscription(ctx, tx, subscriptionID)
		return err
	})
	return w, err
}

func (s *Service) subscription(ctx context.Context, tx store.Tx, subscriptionID string) (Webhook, error) {
	w, err := s.own(ctx, tx, subscriptionID)
	if fault.Is(err, fault.NotFound) || err == nil && w.Format != CreatorDev {
		return w, fault.New(fault.NotFound, "no such subscription")
	}
	return w, err
}

func (w *Webhook) subscribe(n Subscription) {
	w.URL, w.Types, w.Client, w.Accept = n.URL, []string{SubscriptionPrefix + n.Type}, n.Client, n.Accept
}

// another refuses a subscription that is there already, and one too many.
func (s *Service) another(tx store.Tx, w Webhook) error {
	all, err := webhooks.PageBy(tx, "org", store.TermOf(w.Org), page.Request{Limit: MaxWebhooks})
	if err != nil {
		return err
	}
	known := false
	for _, old := range all.Items {
		known = known || old.ID == w.ID
		if old.ID != w.ID && old.Format == CreatorDev && old.Client == w.Client && old.Types[0] == w.Types[0] && strings.EqualFold(old.URL, w.URL) {
			return fault.New(fault.Conflict, "there is this subscription already")
		}
	}
	if !known && len(all.Items) >= MaxWebhooks {
		return fault.New(fault.TooLarge, "the organisation has %d webhooks and subscriptions; delete one first", len(all.Items))
	}
	return nil
}

func (s *Service) checkSubscription(n Subscription) error {
	var bad []fault.Field
	if err := s.CheckURL(n.URL); err != nil || len(n.URL) > 2048 {
		bad = append(bad, fault.Field{Name: "Url", Message: "is needed: an https URL of at most 2048 bytes"})
	}
	if len(n.Accept) > 128 || strings.ContainsFunc(n.Accept, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		bad = append(bad, fault.Field{Name: "AcceptContentType", Message: "is not a media type"})
	}
	return fault.InvalidFields(bad...)
}

// notification is a delivery as the reference posts it.
type notification struct {
	XMLName xml.Name           `json:"-" xml:"Notifications"`
	Items   []notificationItem `json:"Items" xml:"Items>Notification"`
}

type notificationItem struct {
	Links            []notificationLink `json:"Links" xml:"Links>Link"`
	TimeTriggered    time.Time          `json:"TimeTriggered" xml:"TimeTriggered"`
	SubscriptionType string             `json:"SubscriptionType" xml:"SubscriptionType"`
}

type notificationLink struct {
	Rel  string `json:"rel" xml:"rel,attr"`
	Href string `json:"href" xml:"href,attr"`
}

// notification returns the body and the headers of a delivery to a subscription.
func (w *Webhook) notification(d Delivery) (body []byte, header map[string]string, err error) {
	item := notificationItem{
		Links:         []notificationLink{{"subscription", "/subscriptions/" + w.ID}},
		TimeTriggered: d.Event.Time.UTC(), SubscriptionType: strings.TrimPrefix(d.Event.Type, SubscriptionPrefix),
	}
	if d.Event.Client != "" {
		item.Links = append(item.Links, notificationLink{"client", "/clients/" + d.Event.Client})
	}
	n, kind := notification{Items: []notificationItem{item}}, w.Accept
	if strings.HasSuffix(strings.ToLower(kind), "xml") {
		body, err = xml.Marshal(n)
	} else {
		body, err = json.Marshal(n)
		if kind == "" || strings.Contains(kind, "*") {
			kind = "application/json"
		}
	}
	return body, map[string]string{"Content-Type": kind}, err
}
