package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/events"
	"keystead/fault"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/psk"
	"keystead/store"
)

// The subscriptions of the CreatorDev API: webhooks by another name, in the same
// outbox. They are about clients and identities, never about the data of devices.

func (s *Server) subscriptionRoutes() []route {
	const one, ofClient = "/subscriptions/:subscription", "/clients/:client/subscriptions"
	return []route{
		{method: http.MethodGet, path: "/subscriptions", need: identity.OrgAdmin, handle: s.listSubscriptions, wire: creatorProblem},
		{method: http.MethodPost, path: "/subscriptions", need: identity.OrgAdmin, handle: s.createSubscription, wire: creatorProblem},
		{method: http.MethodGet, path: one, need: identity.OrgAdmin, handle: s.showSubscription, wire: creatorProblem},
		{method: http.MethodPut, path: one, need: identity.OrgAdmin, handle: s.setSubscription, wire: creatorProblem},
		{method: http.MethodDelete, path: one, need: identity.OrgAdmin, handle: s.deleteSubscription, wire: creatorProblem},
		{method: http.MethodGet, path: ofClient, need: identity.OrgAdmin, handle: s.listSubscriptions, wire: creatorProblem},
		{method: http.MethodPost, path: ofClient, need: identity.OrgAdmin, handle: s.createSubscription, wire: creatorProblem},
	}
}

// What else can be subscribed to than what happens in package lwm2m.
const (
	identityCreated = "IdentityCreated"
	identityRevoked = "IdentityRevoked"
)

var subscriptionTypes = []string{
	lwm2m.ClientConnected, lwm2m.ClientDisconnected, lwm2m.ClientUpdated, lwm2m.ClientConnectionExpired,
	lwm2m.BootstrapStarted, lwm2m.BootstrapFinished, lwm2m.BootstrapFailed, lwm2m.AuthenticationFailed,
	identityCreated, identityRevoked,
}

// subscriptionBody is what a subscription is made from. What it says of a
// property and its attributes is for observations, and counts for nothing.
type subscriptionBody struct {
	SubscriptionType  string `xml:"SubscriptionType"`
	URL               string `json:"Url" xml:"Url"`
	AcceptContentType string `xml:"AcceptContentType"`
}

func (b subscriptionBody) subscription(client string) (events.Subscription, error) {
	n := events.Subscription{Client: client, Type: b.SubscriptionType, URL: b.URL, Accept: b.AcceptContentType}
	if strings.EqualFold(n.Type, "Observation") {
		return n, fault.InvalidFields(fault.Field{Name: "SubscriptionType", Message: "cannot be Observation: this server reads no values of devices"})
	}
	if !slices.Contains(subscriptionTypes, n.Type) {
		return n, fault.InvalidFields(fault.Field{Name: "SubscriptionType", Message: "must be one of " + strings.Join(subscriptionTypes, ", ")})
	}
	return n, nil
}

func viewSubscription(c echo.Context, w events.Webhook) resource {
	r := resource{
		root: "Subscription", media: "subscription",
		members: []member{{"SubscriptionType", strings.TrimPrefix(w.Types[0], events.SubscriptionPrefix)}, {"Url", w.URL}},
		links:   selfLinks(creatorURL(c, "subscriptions", w.ID), true),
	}
	if w.Accept != "" {
		r.members = append(r.members, member{"AcceptContentType", w.Accept})
	}
	if w.Client != "" {
		r.links = append(r.links, link{"client", creatorURL(c, "clients", w.Client), "client"})
	}
	return r
}

// subscribed is the client a path is about, "" for all.
func (s *Server) subscribed(c echo.Context) (string, error) {
	client := c.Param("client")
	if client == "" {
		return "", nil
	}
	return client, s.LwM2M.Known(c.Request().Context(), client)
}

func (s *Server) listSubscriptions(c echo.Context) error {
	r, err := rangeOf(c)
	if err != nil {
		return err
	}
	client, err := s.subscribed(c)
	if err != nil {
		return err
	}
	list, err := s.Events.Subscriptions(c.Request().Context(), client)
	if err != nil {
		return err
	}
	items := []resource{}
	for _, w := range list[min(r.start, len(list)):min(r.start+r.size, len(list))] {
		items = append(items, viewSubscription(c, w))
	}
	return resource{
		root: "Subscriptions", media: "subscriptions", members: r.pageOf(c, len(list), items),
		links: []link{{"add", "https://" + c.Request().Host + c.Request().URL.EscapedPath(), ""}},
	}.write(c, http.StatusOK)
}

func (s *Server) createSubscription(c echo.Context) error {
	var in subscriptionBody
	if err := mustBindCreator(c, &in); err != nil {
		return err
	}
	client, err := s.subscribed(c)
	if err != nil {
		return err
	}
	n, err := in.subscription(client)
	if err != nil {
		return err
	}
	w, err := s.Events.Subscribe(c.Request().Context(), n)
	if err != nil {
		return err
	}
	self := creatorURL(c, "subscriptions", w.ID)
	c.Response().Header().Set("Location", self)
	return resource{root: "ResourceCreated", media: "resourcecreated", members: []member{{"ID", w.ID}}, links: []link{{"self", self, ""}}}.write(c, http.StatusCreated)
}

// subscriptionID is the id in the path; what cannot be one is refused.
func subscriptionID(c echo.Context) (string, error) {
	text := c.Param("subscription")
	if psk.IdentityOf(text) == "" {
		return "", fault.New(fault.Invalid, "this is no subscription's id")
	}
	return text, nil
}

func (s *Server) showSubscription(c echo.Context) error {
	id, err := subscriptionID(c)
	if err != nil {
		return err
	}
	w, err := s.Events.Subscription(c.Request().Context(), id)
	if err != nil {
		return err
	}
	return viewSubscription(c, w).write(c, http.StatusOK)
}

func (s *Server) setSubscription(c echo.Context) error {
	id, err := subscriptionID(c)
	if err != nil {
		return err
	}
	var in subscriptionBody
	if err := mustBindCreator(c, &in); err != nil {
		return err
	}
	n, err := in.subscription("")
	if err != nil {
		return err
	}
	if err := s.Events.Resubscribe(c.Request().Context(), id, n); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) deleteSubscription(c echo.Context) error {
	id, err := subscriptionID(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if _, err := s.Events.Subscription(ctx, id); err != nil {
		return err
	}
	if err := s.Events.Delete(ctx, id); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

// emitLwM2M puts what happened to a client into the outbox.
func (s *Server) emitLwM2M(ctx context.Context, tx store.Tx, h lwm2m.Happened) error {
	data := map[string]any{"device": h.Device, "client": h.Client}
	if v := h.Session; v != nil {
		data["session"], data["endpoint"] = v.ID, v.Endpoint
		if v.Outcome != "" {
			data["outcome"] = v.Outcome
		}
	}
	return s.emitClient(ctx, tx, events.Event{Org: h.Org, Type: events.SubscriptionPrefix + h.What, Subj: h.Device, Client: h.Client}, data)
}

// emitIdentity tells subscriptions of the keys and certificates devices get and
// lose. Other webhooks hear of that as device.credential.….
func (s *Server) emitIdentity(ctx context.Context, tx store.Tx, c devices.Change) error {
	what := map[devices.What]string{devices.Attached: identityCreated, devices.CredentialRevokedNow: identityRevoked}[c.What]
	if what == "" || c.Credential == nil || c.Credential.Kind != identity.PSK && c.Credential.Kind != identity.Certificate {
		return nil
	}
	if wanted, err := s.Events.Wanted(tx, c.Device.Org); !wanted || err != nil {
		return err
	}
	e := events.Event{Org: c.Device.Org, Type: events.SubscriptionPrefix + what, Subj: c.Device.ID, Client: lwm2m.ClientID(c.Device), Only: events.CreatorDev}
	return s.emitClient(ctx, tx, e, map[string]any{"kind": c.Credential.Kind, "id": c.Credential.ID})
}

func (s *Server) emitClient(ctx context.Context, tx store.Tx, e events.Event, data map[string]any) (err error) {
	if e.Data, err = json.Marshal(data); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return s.Events.Emit(ctx, tx, e)
}
