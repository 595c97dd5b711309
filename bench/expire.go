package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"keystead/authsets"
	"keystead/id"
	"keystead/server"
)

// expired is how many devices a sweep has to remove.
const expired = 10_000

// sweepBench measures a sweep that ends what is over, in a store of many that are not.
func sweepBench(ctx context.Context, r *run, s *server.Server) error {
	for range expired {
		request, err := authRequest(fmt.Sprintf(`{"mac":%q}`, id.Random()))
		if err != nil {
			return err
		}
		if _, err := s.AuthSets.Authenticate(ctx, request); err == nil {
			return errors.New("a device nobody knows was let in")
		}
	}
	s.AuthSets.Config.PendingTTL = time.Hour
	before, started := spent(), time.Now()
	if err := s.AuthSets.Sweep(ctx, s.Now().Add(2*time.Hour)); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "A sweep that ends %s devices which nobody accepted in time takes %s s, %s s of them on the CPU.\n\n", thousands(expired),
		figure(time.Since(started).Seconds()), figure((spent() - before).Seconds()))
	return nil
}

// authRequest is one of a device with a key of its own, as mender-client sends it.
func authRequest(identity string) (authsets.Request, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return authsets.Request{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return authsets.Request{}, err
	}
	body, err := json.Marshal(map[string]string{"id_data": identity, "pubkey": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	if err != nil {
		return authsets.Request{}, err
	}
	return authsets.Request{Body: body, Signature: base64.StdEncoding.EncodeToString(ed25519.Sign(key, body))}, nil
}
