package authsets_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"keystead/authsets"
	"keystead/fault"
)

func TestReadCSV(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	der := base64.StdEncoding.EncodeToString(k.der())
	for _, row := range [][]string{
		{"\ufeffserial", "pubkey", "mac", "force"},
		{"1", k.pem(), "aa", ""},
		{"2", der, "", "true"},
		{"", der, "", ""},
		{"4", "x", "", ""},
		{"5", der},
		{"6", der, `"quoted", with` + "\nline end", "false"},
	} {
		if err := w.Write(row); err != nil {
			t.Fatal(err)
		}
	}
	w.Flush()
	var got []string
	for line := range authsets.ReadCSV(&b) {
		if line.Err != nil {
			got = append(got, fmt.Sprint(line.Number, " ", fault.KindOf(line.Err)))
			continue
		}
		if !bytes.Equal(line.New.Key, k.der()) {
			t.Errorf("line %d: another key", line.Number)
		}
		got = append(got, fmt.Sprint(line.Number, " ", line.New.Identity, " ", line.New.Force))
	}
	want := []string{
		`1 {"mac":"aa","serial":"1"} false`, `2 {"serial":"2"} true`, "3 invalid", "4 invalid", "5 invalid",
		`6 {"mac":"\"quoted\", with\nline end","serial":"6"} false`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestImportGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := admin(t.Context(), org)
	var lines []authsets.Line
	for n := range 10 {
		lines = append(lines, authsets.Line{Number: n + 1, New: authsets.New{Identity: authsets.Canonical(fmt.Sprintf(`{"n":"%d"}`, n)), Key: newKey(t).der()}})
	}
	statuses := func(results []authsets.Result) string {
		var words []string
		for _, r := range results {
			words = append(words, r.Status)
		}
		return strings.Join(words, " ")
	}
	if results, err := f.Import(ctx, lines, true); err != nil || strings.Count(statuses(results), "preauthorized") != 10 {
		t.Fatalf("dry: got %v, %v", results, err)
	}
	if n, _ := f.Count(ctx, ""); n != 0 {
		t.Fatalf("a dry run made %d devices", n)
	}
	if _, err := f.Import(ctx, lines[:4], false); err != nil { // and then it was cut off
		t.Fatal(err)
	}
	other := lines[9]
	other.New.Key = newKey(t).der()
	bad := authsets.Line{Number: 12, Err: fault.New(fault.Invalid, "no CSV")}
	results, err := f.Import(ctx, append(slices.Clone(lines), other, bad), false)
	if want := strings.Repeat("exists ", 4) + strings.Repeat("preauthorized ", 6) + "conflict invalid"; err != nil || statuses(results) != want {
		t.Errorf("got %s, %v; want %s", statuses(results), err, want)
	}
	if n, _ := f.Count(ctx, authsets.Preauthorized); n != 10 {
		t.Errorf("got %d devices, want 10: none lost, none twice", n)
	}
}

func TestLabelsFindWhoWaitsAndWhoWasLetIn(t *testing.T) {
	f := start(t)
	ctx := admin(t.Context(), org)
	ids := map[string]string{}
	label := func(name string, labels map[string]string) {
		f.auth(t, newKey(t), `{"n":"`+name+`"}`)
		for d := range f.pending(ctx) {
			if d.Identity.Attributes()["n"] == name {
				ids[d.ID] = name
				if _, err := f.Describe(ctx, d.ID, nil, &labels); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	label("a", map[string]string{"site": "north", "line": "1"})
	label("b", map[string]string{"site": "north", "line": "2"})
	label("c", map[string]string{"site": "south", "line": "1"})
	label("d", map[string]string{"site": "north", "line": "1"})
	if r, err := f.Bulk(ctx, authsets.BulkChange{Action: authsets.Accept, Labels: map[string]string{"site": "north", "line": "2"}}); err != nil || len(r.Changed) != 1 || ids[r.Changed[0]] != "b" {
		t.Fatalf("accept by label: got %+v %v, want b", r, err)
	}
	// It waits again, with labels that are its record's.
	b, err := f.List(ctx, authsets.Filter{Labels: map[string]string{"line": "2"}}, 0, 10)
	if err != nil || len(b) != 1 {
		t.Fatalf("got %v %v", b, err)
	}
	if _, err := f.SetStatus(ctx, b[0].ID, b[0].Sets[0].ID, authsets.Pending); err != nil {
		t.Fatal(err)
	}
	if r, err := f.Bulk(ctx, authsets.BulkChange{Action: authsets.Accept, Labels: map[string]string{"line": "2"}}); err != nil || len(r.Changed) != 1 || ids[r.Changed[0]] != "b" {
		t.Fatalf("accept by a record's label: got %+v %v, want b", r, err)
	}
	for _, test := range []struct {
		name        string
		ctx         context.Context
		filter      authsets.Filter
		start, size int
		want        string
	}{
		{"waiting before let in", ctx, authsets.Filter{Labels: map[string]string{"site": "north"}}, 0, 10, "a d b"},
		{"a page", ctx, authsets.Filter{Labels: map[string]string{"site": "north"}}, 1, 1, "d"},
		{"a page of those let in", ctx, authsets.Filter{Labels: map[string]string{"site": "north"}}, 2, 2, "b"},
		{"past the end", ctx, authsets.Filter{Labels: map[string]string{"site": "north"}}, 3, 2, ""},
		{"two labels", ctx, authsets.Filter{Labels: map[string]string{"site": "north", "line": "1"}}, 0, 10, "a d"},
		{"with a status", ctx, authsets.Filter{Labels: map[string]string{"site": "north"}, Statuses: []authsets.Status{authsets.Accepted}}, 0, 10, "b"},
		{"with ids", ctx, authsets.Filter{Labels: map[string]string{"line": "1"}, IDs: []string{b[0].ID}}, 0, 10, ""},
		{"of nobody", ctx, authsets.Filter{Labels: map[string]string{"site": "nort"}}, 0, 10, ""},
		{"of another organisation", admin(t.Context(), "other"), authsets.Filter{Labels: map[string]string{"site": "north"}}, 0, 10, ""},
	} {
		list, err := f.List(test.ctx, test.filter, test.start, test.size)
		var got []string
		for _, d := range list {
			got = append(got, ids[d.ID])
		}
		if err != nil || strings.Join(got, " ") != test.want {
			t.Errorf("%s: got %v %v, want %s", test.name, got, err, test.want)
		}
	}
}

func TestBulk(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := admin(t.Context(), org)
	two := newKey(t)
	for n := range 4 {
		f.auth(t, newKey(t), fmt.Sprintf(`{"model":"a","n":"%d"}`, n))
		f.auth(t, newKey(t), fmt.Sprintf(`{"model":"b","n":"%d"}`, n))
	}
	f.auth(t, two, `{"model":"a","n":"0"}`) // a second key: somebody has to look
	change := authsets.BulkChange{Action: authsets.Accept, Attributes: map[string]string{"model": "a|c"}, DryRun: true}
	for _, dry := range []bool{true, false} {
		change.DryRun = dry
		r, err := f.Bulk(ctx, change)
		if err != nil || len(r.Changed) != 3 || len(r.Skipped) != 1 || r.Looked != 8 || r.Next != "" {
			t.Fatalf("dry %v: got %+v, %v", dry, r, err)
		}
		want := map[bool]int{true: 0, false: 3}[dry]
		if n, _ := f.Count(ctx, authsets.Accepted); n != want {
			t.Errorf("dry %v: got %d accepted, want %d", dry, n, want)
		}
	}
	if err := f.SetLimit(ctx, 4); err != nil {
		t.Fatal(err)
	}
	change.Attributes = map[string]string{"model": "b"}
	if r, err := f.Bulk(ctx, change); err != nil || len(r.Changed) != 1 || len(r.Skipped) != 3 {
		t.Errorf("over the limit: got %+v, %v", r, err)
	}
	if r, err := f.Bulk(ctx, authsets.BulkChange{Action: authsets.Reject}); err != nil || len(r.Changed) != 4 {
		t.Errorf("reject: got %+v, %v", r, err)
	}
	for _, bad := range []authsets.BulkChange{{Action: "delete"}, {Action: authsets.Accept, Attributes: map[string]string{"a": "("}}, {Action: authsets.Accept, Status: "foo"}} {
		if _, err := f.Bulk(ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: got %v, want Invalid", bad, err)
		}
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	signer := newKey(t)
	voucher := func(by key) string {
		const plain = `{"n":"1"}`
		return fmt.Sprintf(`{"n":"1","voucher":"%s"}`, by.sign([]byte(plain)))
	}
	now := time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)
	for name, row := range map[string]struct {
		rule authsets.Rule
		id   string
		in   bool
	}{
		"equals":                  {authsets.Rule{Attribute: "mac", Equals: "a"}, `{"mac":"a"}`, true},
		"equals not":              {authsets.Rule{Attribute: "mac", Equals: "a"}, `{"mac":"ab"}`, false},
		"no such attribute":       {authsets.Rule{Attribute: "mac", Equals: "a"}, `{"n":"a"}`, false},
		"matches":                 {authsets.Rule{Attribute: "mac", Matches: "a[0-9]+"}, `{"mac":"a12"}`, true},
		"matches all or nothing":  {authsets.Rule{Attribute: "mac", Matches: "a[0-9]+"}, `{"mac":"xa12"}`, false},
		"matches no alternative":  {authsets.Rule{Attribute: "mac", Matches: "a|b"}, `{"mac":"bx"}`, false},
		"network":                 {authsets.Rule{CIDRs: []string{"10.0.0.0/8", "192.0.2.0/24"}}, one, true},
		"another network":         {authsets.Rule{CIDRs: []string{"198.51.100.0/24"}}, one, false},
		"both have to hold":       {authsets.Rule{Attribute: "mac", Equals: "no", CIDRs: []string{"192.0.2.0/24"}}, one, false},
		"signed":                  {authsets.Rule{Key: signer.der()}, voucher(signer), true},
		"signed by another":       {authsets.Rule{Key: signer.der()}, voucher(newKey(t)), false},
		"not signed":              {authsets.Rule{Key: signer.der()}, `{"n":"1"}`, false},
		"another identity signed": {authsets.Rule{Key: signer.der()}, strings.Replace(voucher(signer), `"n":"1"`, `"n":"2"`, 1), false},
		"in time":                 {authsets.Rule{CIDRs: []string{"192.0.2.0/24"}, Until: now.Add(time.Second)}, one, true},
		"too late":                {authsets.Rule{CIDRs: []string{"192.0.2.0/24"}, Until: now}, one, false},
	} {
		f := start(t)
		row.rule.Name = name
		if _, err := f.AddRule(admin(t.Context(), org), row.rule); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if in := f.auth(t, newKey(t), row.id) != ""; in != row.in {
			t.Errorf("%s: let in: %v, want %v", name, in, row.in)
		}
	}
}

func TestRuleIsUsedUp(t *testing.T) {
	t.Parallel()
	f := start(t)
	ctx := admin(t.Context(), org)
	waits := newKey(t)
	if f.auth(t, waits, `{"n":"0"}`) != "" {
		t.Fatal("let in")
	}
	rule, err := f.AddRule(ctx, authsets.Rule{Name: "first two", CIDRs: []string{netip.MustParsePrefix("192.0.2.0/24").String()}, Most: 2})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time counts for nothing
		if f.auth(t, waits, `{"n":"0"}`) == "" {
			t.Error("the first is not let in")
		}
	}
	if f.auth(t, newKey(t), `{"n":"1"}`) == "" {
		t.Error("the second is not let in")
	}
	if f.auth(t, newKey(t), `{"n":"2"}`) != "" {
		t.Error("a third is let in")
	}
	list, err := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Accepted}}, 0, 10)
	if err != nil || len(list) != 2 || list[0].Sets[0].By != "rule/"+rule.ID {
		t.Errorf("got %+v, %v", list, err)
	}
	rejected := newKey(t)
	f.auth(t, rejected, `{"n":"3"}`)
	for _, d := range mustList(t, f, authsets.Pending) {
		if _, err := f.SetStatus(ctx, d.ID, d.Sets[0].ID, authsets.Rejected); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.AddRule(ctx, authsets.Rule{Name: "all here", CIDRs: []string{"192.0.2.0/24"}}); err != nil {
		t.Fatal(err)
	}
	if f.auth(t, rejected, `{"n":"3"}`) != "" {
		t.Error("a rule lets in who was rejected")
	}
	for _, bad := range []authsets.Rule{
		{Name: "everything"},
		{Attribute: "a", Equals: "b"},
		{Name: "x", Attribute: "a"},
		{Name: "x", Equals: "b"},
		{Name: "x", Attribute: "a", Equals: "b", Matches: "c"},
		{Name: "x", Attribute: "a", Matches: "("},
		{Name: "x", CIDRs: []string{"here"}},
		{Name: "x", Attribute: "a", Equals: "b", Most: -1},
	} {
		if _, err := f.AddRule(ctx, bad); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: got %v, want Invalid", bad, err)
		}
	}
}

func mustList(t *testing.T, f *fixture, status authsets.Status) []authsets.Device {
	t.Helper()
	list, err := f.List(admin(t.Context(), org), authsets.Filter{Statuses: []authsets.Status{status}}, 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func FuzzReadCSV(f *testing.F) {
	k := newKey(f)
	f.Add("mac,pubkey\naa," + base64.StdEncoding.EncodeToString(k.der()) + "\n")
	f.Add("mac,pubkey\n\"aa")
	f.Add("pubkey,force,device\n,,\n")
	f.Fuzz(func(t *testing.T, text string) {
		last := 0
		for line := range authsets.ReadCSV(strings.NewReader(text)) {
			if line.Number <= last {
				t.Fatalf("line %d after %d", line.Number, last)
			}
			if last = line.Number; line.Err == nil && (line.New.Identity == "" || len(line.New.Key) == 0) {
				t.Errorf("took %+v", line)
			}
		}
		for line := range authsets.ReadJSONLines(strings.NewReader(text)) {
			if line.Err == nil && (line.New.Identity == "" || len(line.New.Key) == 0) {
				t.Errorf("took %+v", line)
			}
		}
	})
}

func FuzzRequest(f *testing.F) {
	k := newKey(f)
	r := k.request(one)
	f.Add(r.Body, r.Signature)
	f.Add([]byte(`{"id_data":"{}","pubkey":"x"}`), "AAAA")
	f.Add([]byte(`null`), "")
	s := start(f)
	f.Fuzz(func(t *testing.T, body []byte, signature string) {
		token, err := s.Authenticate(t.Context(), authsets.Request{Body: body, Signature: signature})
		if err == nil || token != "" {
			t.Errorf("let in with %q", body)
		}
		if kind := fault.KindOf(err); kind != fault.Invalid && kind != fault.Unauthenticated {
			t.Errorf("%q: %v", body, err)
		}
	})
}
