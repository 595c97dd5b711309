package server

import (
	"context"

	"keystead/fault"
	"keystead/seal"
	"keystead/store"
)

// serverSecret is a random key of the server itself, made at first start.
type serverSecret struct {
	Sealed []byte `cbor:"sealed"`
}

var serverSecrets = store.NewTable[serverSecret]("server secret")

// Names of the server's own secrets. They outlive rotations of the data keys.
const (
	auditSecret   = "audit chain"        // MACs the audit trail
	decoySecret   = "psk decoy"          // stands in for the keys of unknown PSK identities
	takenSecret   = "device journal"     // authenticates the lines of devices.log
	journalSecret = "revocation journal" // authenticates the lines of revocations.log
	thingSecret   = "thing key index"    // finds external thing keys without keeping them in clear
)

// secretNamed returns the server's secret of that name, 32 bytes, made now if
// there is none.
func secretNamed(ctx context.Context, db store.Engine, box *seal.Box, name string) (seal.Secret, error) {
	fresh := seal.NewSecret(32)
	var secret seal.Secret
	err := db.Update(ctx, func(tx store.Tx) error {
		kept, err := serverSecrets.Get(tx, name)
		switch {
		case fault.Is(err, fault.NotFound):
			secret = fresh
			return serverSecrets.Insert(tx, name, serverSecret{Sealed: box.Seal(place(name), fresh)})
		case err != nil:
			return err
		}
		secret, err = box.Open(place(name), kept.Sealed)
		return err
	})
	return secret, err
}

func place(name string) string { return serverSecrets.Name() + "/" + name }
