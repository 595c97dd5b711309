package seal_test

import (
	"fmt"
	"strings"
	"testing"

	"keystead/seal"
)

const someID = "01890a5d-ac96-774b-bcce-b302099a8057"

func TestTicketReadsBack(t *testing.T) {
	made := seal.NewTicket("api", someID)
	text := string(made.Text())
	got, ok := seal.ParseTicket(text)
	if !ok || got.Kind != "api" || got.ID != someID || !got.Matches(made.Hash()) {
		t.Fatalf("ParseTicket(Text()) = %+v, %v; want the ticket that was made", got, ok)
	}
	parts := strings.Split(text, "_")
	if len(parts) != 5 || parts[0] != "keystead" || len(parts[2]) != 26 || len(parts[3]) != 43 || len(parts[4]) != 6 {
		t.Errorf("text is %q, want keystead_<kind>_<26>_<43>_<6>", text)
	}
	if other := seal.NewTicket("api", someID); other.Matches(made.Hash()) {
		t.Error("two tickets of one record have the same secret")
	}
	if shown := fmt.Sprintf("%v %+v %s", made.Text(), made, made.Text()); strings.Contains(shown, parts[3]) {
		t.Errorf("a printed ticket shows its secret: %s", shown)
	}
}

func TestChangedTicketIsNone(t *testing.T) {
	text := string(seal.NewTicket("api", someID).Text())
	for i := range text {
		changed := []byte(text)
		changed[i] ^= 1
		if _, ok := seal.ParseTicket(string(changed)); ok {
			t.Errorf("ParseTicket accepts %q, which differs from the ticket at byte %d", changed, i)
		}
	}
	for _, bad := range []string{"", "keystead_", "keystead__", text[1:], text + "0", strings.ToUpper(text), strings.Repeat("keystead_api_", 1000)} {
		if _, ok := seal.ParseTicket(bad); ok {
			t.Errorf("ParseTicket(%.60q) = true", bad)
		}
	}
}

func FuzzParseTicket(f *testing.F) {
	f.Add(string(seal.NewTicket("api", someID).Text()))
	f.Add("keystead_api_")
	f.Fuzz(func(t *testing.T, s string) {
		if got, ok := seal.ParseTicket(s); ok && string(got.Text()) != s {
			t.Errorf("%q reads as a ticket that is written %q", s, string(got.Text()))
		}
	})
}
