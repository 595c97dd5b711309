package server

import (
	"context"
	"crypto/tls"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
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
		Side:     coapgw.Side{UDP: s.Config.LwM2M.UDP, Routes: append(s.LwM2M.BootstrapRoutes(), s.EST.CoAPRoutes()...)},
		Resolver: s.resolveCoAP,
		Secret:   s.pskSecret,
		DecoyKey: decoy,
		Certificate: func(over identity.Transport, name string) (*tls.Certificate, error) {
			if over == identity.CoAPUDP {
				return s.tls.datagrams(name)
			}
			return s.tls.named(name)
		},
		Epoch: s.Devices.Epoch,
		Log:   s.Log,
		Now:   s.Now,
	}
	s.Devices.Listen(s.CoAP.Changed)
	s.tasks = append(s.tasks, task{"coap", s.CoAP.Run})
	return s.buildOCF(ctx)
}

// pskSecret is the key of an identity, and whom it proves. A device that was just given one in its
// bootstrap may come with it before that was written down: it is waited for.
func (s *Server) pskSecret(ctx context.Context, name string) (seal.Secret, identity.Actor, error) {
	secret, a, err := s.PSK.Open(ctx, psk.Identity(name))
	if fault.Is(err, fault.NotFound) && s.LwM2M.Await(ctx, name) {
		return s.PSK.Open(ctx, psk.Identity(name))
	}
	return secret, a, err
}

// resolveCoAP says who a proof of a session belongs to. A certificate is waited for
// as a key is.
func (s *Server) resolveCoAP(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	a, err := s.Resolver.Resolve(ctx, p)
	if fault.Is(err, fault.Unauthenticated) && len(p.Chain) > 0 && s.LwM2M.Await(ctx, string(pki.SerialOf(p.Chain[0].SerialNumber))) {
		return s.Resolver.Resolve(ctx, p)
	}
	return a, err
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
