package audit

import (
	"encoding/json"
	"testing"
	"time"

	"keystead/identity"
)

// FuzzText has the text of a record be what json.Marshal writes, which trails that are there
// are chained by.
func FuzzText(f *testing.F) {
	f.Add(uint64(0), int64(0), "", "", "", "", "")
	f.Add(uint64(1), int64(1e18), "org", "user", "psk.create", "0190", "reason")
	f.Add(uint64(1)<<63, int64(1_800_000_000_123_456_789), "a\"b\\c", "<&>", "\u2028\u2029\x7f", "tür \xff\x00\n", "\U0001F600")
	f.Fuzz(func(t *testing.T, seq uint64, at int64, a, b, c, d, e string) {
		for _, r := range []Record{
			{Seq: seq, At: time.Unix(0, at).UTC(), Org: a, Actor: Actor{Kind: identity.Kind(b), ID: c, Credential: identity.CredentialKind(d)}, Action: e},
			{Seq: seq, At: time.Unix(at%(1<<36), 0).UTC(), Org: a, Action: b, Target: c, Device: d, RequestID: e, Detail: map[string]string{}},
			{Seq: seq, At: time.Unix(0, at).UTC(), Target: a, Detail: map[string]string{a: b, c: d, e: a}, RequestID: b},
		} {
			want, err := json.Marshal(r)
			if err != nil {
				t.Skip(err) // a year no record is of
			}
			if got := r.text(); string(got) != string(want) {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		}
	})
}
