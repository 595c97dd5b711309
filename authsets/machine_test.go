package authsets_test

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"pgregory.net/rapid"

	"keystead/authsets"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
)

// model is what should be: kept apart from the service, in the plainest way there is.
type model struct {
	id      string // of the device, "" for none
	sets    map[int]*modelSet
	linked  bool
	suspend bool
}

type modelSet struct {
	status authsets.Status
	tokens []string // alive
	dead   []string
}

func (m *model) kill(k int) {
	if s := m.sets[k]; s != nil {
		s.dead, s.tokens = append(s.dead, s.tokens...), nil
	}
}

// TestStateMachine does random things to the sets of one identity and after each compares all
// there is to be seen: at most one set is accepted, no token of another lives, none comes back.
func TestStateMachine(t *testing.T) {
	operations := 5_000
	if n, err := strconv.Atoi(os.Getenv("KEYSTEAD_OPERATIONS")); err == nil {
		operations = n
	}
	f := start(t)
	ctx := admin(t.Context(), org)
	keys := []key{newKey(t), newKey(t), newKey(t)}
	done, identityNo := 0, 0
	for done < operations {
		rapid.Check(t, func(t *rapid.T) {
			if done >= operations {
				return
			}
			identityNo++
			id := fmt.Sprintf(`{"n":"%d"}`, identityNo)
			m := &model{sets: map[int]*modelSet{}}
			device := func() (authsets.Device, bool) {
				d, err := f.Get(ctx, m.id)
				return d, err == nil && m.id != ""
			}
			setOf := func(k int) string {
				d, _ := device()
				for _, s := range d.Sets {
					if string(s.Key) == string(keys[k].der()) {
						return s.ID
					}
				}
				return "00000000-0000-7000-8000-000000000000"
			}
			anyKey := rapid.IntRange(0, len(keys)-1)
			accept := func(k int) {
				for other, s := range m.sets {
					if other != k && s.status == authsets.Accepted {
						s.status = authsets.Rejected
						m.kill(other)
					}
				}
				m.sets[k].status = authsets.Accepted
				m.linked = true
			}
			t.Repeat(map[string]func(*rapid.T){
				"request": func(t *rapid.T) {
					k := anyKey.Draw(t, "key")
					token, err := f.Authenticate(t.Context(), keys[k].request(id))
					if m.id == "" || m.sets[k] == nil {
						m.sets[k] = &modelSet{status: authsets.Pending}
						for d, err := range f.pending(t.Context()) {
							if err == nil && string(d.Identity) == id {
								m.id = d.ID
							}
						}
					}
					if m.sets[k].status == authsets.Preauthorized {
						accept(k)
					}
					may := m.sets[k].status == authsets.Accepted && !m.suspend
					if may != (err == nil) {
						t.Fatalf("request of a set that is %s: %v", m.sets[k].status, err)
					}
					if err == nil {
						m.sets[k].tokens = append(m.sets[k].tokens, token)
					}
				},
				"status": func(t *rapid.T) {
					k, to := anyKey.Draw(t, "key"), rapid.SampledFrom([]authsets.Status{authsets.Accepted, authsets.Rejected, authsets.Pending}).Draw(t, "to")
					_, err := f.SetStatus(ctx, m.id, setOf(k), to)
					s := m.sets[k]
					switch {
					case s == nil:
						if !fault.Is(err, fault.NotFound) {
							t.Fatalf("a set that is not there: %v", err)
						}
					case s.status == authsets.Preauthorized:
						if !fault.Is(err, fault.Invalid) {
							t.Fatalf("a preauthorized set: %v", err)
						}
					case err != nil:
						t.Fatalf("%s to %s: %v", s.status, to, err)
					case to == authsets.Accepted:
						accept(k)
					default:
						if s.status == authsets.Accepted {
							m.kill(k)
						}
						s.status = to
					}
				},
				"preauthorize": func(t *rapid.T) {
					k, force := anyKey.Draw(t, "key"), rapid.Bool().Draw(t, "force")
					d, err := f.Preauthorise(ctx, authsets.New{Identity: authsets.Canonical(id), Key: keys[k].der(), Force: force})
					if m.id != "" && !force {
						if !errors.Is(err, authsets.ErrExists) {
							t.Fatalf("a device that is there: %v", err)
						}
						return
					}
					if err != nil {
						t.Fatal(err)
					}
					m.id = d.ID
					if s := m.sets[k]; s == nil {
						m.sets[k] = &modelSet{status: authsets.Preauthorized}
					} else {
						m.kill(k)
						s.status = authsets.Preauthorized
					}
				},
				"dismiss": func(t *rapid.T) {
					k := anyKey.Draw(t, "key")
					err := f.Dismiss(ctx, m.id, setOf(k))
					s := m.sets[k]
					if (s == nil) != fault.Is(err, fault.NotFound) {
						t.Fatalf("dismiss: %v", err)
					}
					if s == nil {
						return
					}
					m.kill(k)
					f.graves = append(f.graves, s.dead...)
					if len(m.sets) == 1 && s.status == authsets.Preauthorized && !m.linked {
						m.id = ""
					}
					delete(m.sets, k)
				},
				"revoke": func(t *rapid.T) {
					k := anyKey.Draw(t, "key")
					if err := f.Revoke(ctx, setOf(k)+".x"); (m.sets[k] == nil) != fault.Is(err, fault.NotFound) {
						t.Fatalf("revoke: %v", err)
					}
					m.kill(k)
				},
				"revoke through the device": func(t *rapid.T) {
					k := anyKey.Draw(t, "key")
					if s := m.sets[k]; s != nil && s.status == authsets.Accepted {
						if err := f.devices.RevokeCredential(ctx, m.id, identity.AuthSet, setOf(k)); err != nil {
							t.Fatal(err)
						}
						m.kill(k)
						s.status = authsets.Rejected
					}
				},
				"suspend or resume": func(t *rapid.T) {
					if !m.linked || m.id == "" {
						return
					}
					change := (*devices.Service).Suspend
					if m.suspend {
						change = (*devices.Service).Resume
					}
					if _, err := change(f.devices, ctx, m.id); err != nil {
						t.Fatal(err)
					}
					m.suspend = !m.suspend
				},
				"decommission": func(t *rapid.T) {
					if rapid.IntRange(0, 9).Draw(t, "rarely") > 0 {
						return
					}
					if err := f.Decommission(ctx, m.id); (m.id == "") != fault.Is(err, fault.NotFound) {
						t.Fatalf("decommission: %v", err)
					}
					for k, s := range m.sets {
						m.kill(k)
						f.graves = append(f.graves, s.dead...)
					}
					*m = model{sets: map[int]*modelSet{}}
				},
				"": func(t *rapid.T) {
					done++
					d, there := device()
					if there != (m.id != "") {
						t.Fatalf("the device is there: %v, want %v", there, m.id != "")
					}
					accepted := 0
					for _, s := range d.Sets {
						if s.Status == authsets.Accepted {
							accepted++
						}
					}
					if accepted > 1 || len(d.Sets) != len(m.sets) {
						t.Fatalf("got %d accepted sets of %d, want at most one of %d", accepted, len(d.Sets), len(m.sets))
					}
					for k, s := range m.sets {
						i := 0
						for ; i < len(d.Sets) && string(d.Sets[i].Key) != string(keys[k].der()); i++ {
						}
						if i == len(d.Sets) || d.Sets[i].Status != s.status {
							t.Fatalf("set %d is not %s in %+v", k, s.status, d.Sets)
						}
						f.check(t, s.tokens, !m.suspend)
						f.check(t, s.dead, false)
					}
					if n := len(f.graves); n > 0 {
						f.check(t, f.graves[max(0, n-3):], false)
					}
				},
			})
		})
	}
	t.Logf("figure: %d random operations on %d identities: never two accepted sets, never a live token of a set that is not accepted, none back from the dead", done, identityNo)
}

// check looks at the last few of tokens.
func (f *fixture) check(t *rapid.T, tokens []string, want bool) {
	for _, token := range tokens[max(0, len(tokens)-3):] {
		_, err := f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: token})
		if (err == nil) != want || err != nil && !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("a token is good: %v, want %v", err, want)
		}
	}
}

// register is the model of one device for a linearizability check: which of its keys is accepted.
type (
	setInput struct {
		key    int
		status authsets.Status // "" asks which is accepted
	}
	setOutput struct{ accepted int }
)

// TestConcurrentAcceptsAreLinearizable: accepting and rejecting at once is as if done one after
// another, and whoever looks sees one moment of it.
func TestConcurrentAcceptsAreLinearizable(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := admin(t.Context(), org)
	keys := []key{newKey(t), newKey(t), newKey(t)}
	for _, k := range keys {
		f.auth(t, k, one)
	}
	d := f.only(t)
	var mu sync.Mutex
	var history []porcupine.Operation
	var clients sync.WaitGroup
	begin := time.Now()
	const perClient = 40
	for client := range 6 {
		clients.Go(func() {
			for n := range perClient {
				in := setInput{key: (client + n) % len(keys)}
				switch (client + 3*n) % 4 {
				case 0, 1:
					in.status = authsets.Accepted
				case 2:
					in.status = authsets.Rejected
				}
				call := time.Since(begin).Nanoseconds()
				out := setOutput{-1}
				if in.status != "" {
					if _, err := f.SetStatus(ctx, d.ID, d.Sets[in.key].ID, in.status); err != nil {
						t.Errorf("%+v: %v", in, err)
					}
				} else {
					now, err := f.Get(ctx, d.ID)
					if err != nil {
						t.Error(err)
					}
					for i, s := range now.Sets {
						if s.Status == authsets.Accepted {
							out.accepted = i
						}
					}
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: time.Since(begin).Nanoseconds()})
				mu.Unlock()
			}
		})
	}
	clients.Wait()
	accepted := porcupine.Model{
		Init: func() any { return -1 },
		Step: func(state, input, output any) (bool, any) {
			now, in, out := state.(int), input.(setInput), output.(setOutput)
			switch {
			case in.status == authsets.Accepted:
				return true, in.key
			case in.status == authsets.Rejected && now == in.key:
				return true, -1
			case in.status == "":
				return out.accepted == now, now
			}
			return true, now
		},
	}
	if !porcupine.CheckOperations(accepted, history) {
		t.Error("the history of concurrent accepts is not linearizable")
	}
	t.Logf("figure: %d concurrent operations are linearizable", len(history))
}
