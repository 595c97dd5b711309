package server

import (
	"context"
	"crypto/tls"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/identity"
	"keystead/psk"
	"keystead/seal"
)

// buildCoAP makes the CoAP gateway, which serves the routes of every room that
// has some.
func (s *Server) buildCoAP(ctx context.Context) error {
	decoy, err := secretNamed(ctx, s.DB, s.box, decoySecret)
	if err != nil {
		return err
	}
	s.CoAP = &coapgw.Gateway{
		Config:   s.Config.CoAP.Config,
		Routes:   s.coapRoutes(),
		Resolver: func(ctx context.Context, p identity.Proof) (identity.Actor, error) { return s.Resolver.Resolve(ctx, p) },
		Secret: func(ctx context.Context, id string) (seal.Secret, identity.Actor, error) {
			return s.PSK.Open(ctx, psk.Identity(id))
		},
		DecoyKey: decoy,
		Certificate: func(name string) (*tls.Certificate, error) {
			return s.tls.get(&tls.ClientHelloInfo{ServerName: name})
		},
		Epoch: s.Devices.Epoch,
		Log:   s.Log,
		Now:   s.Now,
	}
	s.Devices.Listen(s.CoAP.Changed)
	s.tasks = append(s.tasks, task{"coap", s.CoAP.Run})
	return s.buildOCF(ctx)
}

// coapRoutes is the surface of the gateway besides its own resources, a table per room.
func (s *Server) coapRoutes() []coap.Route {
	var all []coap.Route
	for _, table := range [][]coap.Route{
		s.messageResources(),
		s.LwM2M.Routes(),
		s.EST.CoAPRoutes(),
	} {
		all = append(all, table...)
	}
	return all
}
