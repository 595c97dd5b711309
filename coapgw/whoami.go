package coapgw

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keystead/coap"
	"keystead/identity"
)

// ownRoutes are the resources of the gateway itself.
func (g *Gateway) ownRoutes() []coap.Route {
	routes := append(g.commonRoutes(),
		coap.Route{Method: coap.GET, Path: "/whoami", Need: identity.Proven, Handle: whoami, Observable: true, Link: `rt="keystead.whoami";ct="60 50";obs`})
	if g.OCF.Enabled {
		routes = append(routes, g.ocfRoutes()...)
	}
	return routes
}

// commonRoutes are served on every port.
func (g *Gateway) commonRoutes() []coap.Route {
	return []coap.Route{{Method: coap.GET, Path: "/.well-known/core", Need: identity.Public, Enrols: true, Handle: g.core}}
}

// core answers what is served here (RFC 6690).
func (g *Gateway) core(_ context.Context, r *coap.Request) (coap.Response, error) {
	if f, ok := r.Accept(); ok && f != coap.LinkFormat {
		return coap.Response{}, coap.Errorf(coap.NotAcceptable, "links come in format %d", coap.LinkFormat)
	}
	links := g.router.links
	if s, ok := r.Session.(*session); ok {
		links = s.router().links
	}
	doc, err := encodeLinks(links, r.Options.Strings(coap.URIQuery))
	return coap.Response{Code: coap.Content, Format: coap.LinkFormat, Body: doc}, err
}

// whoamiView is who the server takes the caller for, the same on every transport.
type whoamiView struct {
	Device       string         `json:"device,omitempty"`
	User         string         `json:"user,omitempty"`
	Organisation string         `json:"organisation"`
	Name         string         `json:"name"`
	Role         string         `json:"role,omitempty"`
	Credential   credentialView `json:"credential"`
}

type credentialView struct {
	Kind      identity.CredentialKind `json:"kind"`
	ID        string                  `json:"id"`
	ExpiresAt *time.Time              `json:"expires_at"`
}

func whoami(_ context.Context, r *coap.Request) (coap.Response, error) {
	a := r.Actor
	v := whoamiView{Organisation: a.Org, Name: a.Name, Credential: credentialView{Kind: a.Credential.Kind, ID: a.Credential.ID}}
	if at := a.Credential.ExpiresAt; !at.IsZero() {
		v.Credential.ExpiresAt = &at
	}
	if a.Kind == identity.Device {
		v.Device = a.ID
	} else {
		v.User, v.Role = a.ID, string(a.Role)
	}
	return encode(r, v)
}

// texts encodes times as text (RFC 3339), as JSON has them.
var texts = sync.OnceValues(func() (cbor.EncMode, error) {
	return cbor.EncOptions{Time: cbor.TimeRFC3339Nano, TimeTag: cbor.EncTagNone}.EncMode()
})

func encodeCBOR(v any) ([]byte, error) {
	mode, err := texts()
	if err != nil {
		return nil, err
	}
	return mode.Marshal(v)
}

// encode answers a GET with v, in CBOR or JSON as the client accepts it.
func encode(r *coap.Request, v any) (coap.Response, error) {
	format, ok := r.Accept()
	if !ok {
		format = coap.CBOR
	}
	var body []byte
	var err error
	switch format {
	case coap.CBOR, coap.OCFCBOR:
		body, err = encodeCBOR(v)
	case coap.JSON:
		body, err = json.Marshal(v)
	default:
		return coap.Response{}, coap.Errorf(coap.NotAcceptable, "formats are %d (CBOR) and %d (JSON)", coap.CBOR, coap.JSON)
	}
	return coap.Response{Code: coap.Content, Format: format, Body: body}, err
}
