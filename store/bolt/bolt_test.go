package bolt_test

import (
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"keystead/store"
	"keystead/store/bolt"
	"keystead/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, opts ...bolt.Option) *bolt.Engine {
	t.Helper()
	e, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestEngine(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Engine { return open(t) })
}

func TestTableAgainstAModel(t *testing.T) { storetest.Model(t, open(t, bolt.UnsafeNoSync())) }
