package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"keystead/devices"
	"keystead/identity"
	"keystead/page"
	"keystead/server"
	"keystead/store"
	"keystead/store/bolt"
)

// scaleBench measures what must not grow with the fleet.
func scaleBench(r *run) error {
	type row struct {
		name string
		text [2]string
		cost [2]series
		goal goal
	}
	var rows []*row
	add := func(i int, name string, g goal, s series, unit string) {
		if i == 0 {
			rows = append(rows, &row{name: name, goal: g})
		}
		for _, have := range rows {
			if have.name == name {
				have.text[i], have.cost[i] = s.text(unit), s
			}
		}
	}
	var kinds kindsTable
	for i, n := range []int{1000, r.devices} {
		f, err := r.fleetOf(n)
		if err != nil {
			return err
		}
		if i == 1 {
			fmt.Fprintf(r.out, "A fleet of %s devices with two labels, a pre-shared key, a certificate, an accepted auth set and a thing key each: %s bytes a device in the file. It was built at %s devices a second, %s µs of CPU a device.\n\n",
				thousands(n), thousands(int(f.size)/n), figure(float64(n)/f.took.Seconds()), figure(float64(f.spent.Microseconds())/float64(n)))
		}
		s, err := server.Build(r.ctx, configuration(f.dir), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		ctx := f.context(r.ctx)
		some := func() member { return f.some[rand.IntN(len(f.some))] }
		list := func(filter devices.Filter, after page.Cursor) error {
			p, err := s.Devices.List(ctx, filter, page.Request{Limit: 100, After: after})
			if err == nil && len(p.Items) == 0 {
				return errors.New("the page is empty")
			}
			return err
		}
		deep := page.At(slices.MinFunc(f.some, func(a, b member) int { return -compare(a.device, b.device) }).device[:35])
		if err := kinds.measure(r, i, f, s); err != nil {
			s.Close()
			return err
		}
		for _, op := range []struct {
			name string
			goal goal
			do   func(int) error
		}{
			{"page of 100, the first", atMost(5000, " µs"), func(int) error { return list(devices.Filter{}, "") }},
			{"page of 100, near the end", atMost(5000, " µs"), func(int) error { return list(devices.Filter{}, deep) }},
			{"page of 100 by label", atMost(5000, " µs"), func(int) error {
				return list(devices.Filter{Label: [2]string{"site", fmt.Sprint("site ", rand.IntN(100))}}, "")
			}},
			{"device by alias", goal{}, func(int) error { _, err := s.Devices.Find(ctx, some().identity); return err }},
			{"count by state", goal{}, func(int) error { _, err := s.Devices.Counts(ctx); return err }},
		} {
			got, err := r.inTurns(contender{op.name, func() (float64, error) { return r.each(op.do) }})
			if err != nil {
				s.Close()
				return fmt.Errorf("%s: %w", op.name, err)
			}
			add(i, op.name, op.goal, got[0], " µs")
		}
		var rates series
		for range r.rounds {
			rate, _, err := r.rate(64, func() error { return s.DB.Update(ctx, func(tx store.Tx) error { return enrolOne(s, tx, f, r) }) })
			if err != nil {
				s.Close()
				return err
			}
			rates.values = append(rates.values, rate)
		}
		add(i, "devices with a key made a second, 64 writers", atLeast(0.4, " of that at 1,000"), rates, "/s")
		if i == 1 {
			if err := errors.Join(backup(r, s, f), sweepBench(ctx, r, s)); err != nil {
				s.Close()
				return err
			}
		}
		s.Close()
	}
	table := [][]string{{"what", "at 1,000 devices", "at " + thousands(r.devices), "goal"}}
	for _, row := range rows {
		goals := ""
		switch {
		case row.goal.limit == 0:
		case row.goal.most:
			goals = r.verdict(row.cost[1].median(), row.goal)
		default:
			v := row.cost[1].median() / row.cost[0].median()
			goals = figure(v) + " of it, " + r.verdict(v, row.goal)
		}
		table = append(table, []string{row.name, row.text[0], row.text[1], goals})
	}
	r.table(table...)
	fmt.Fprintln(r.out)
	r.table(append([][]string{{"a resolve by", "p50, p99 at 1,000 devices", "at " + thousands(r.devices)}}, kinds...)...)
	return nil
}

// kindsTable has a row for each kind of credential.
type kindsTable [][]string

// measure takes the time of resolves by each kind of credential, of random devices.
func (t *kindsTable) measure(r *run, column int, f *fleet, s *server.Server) error {
	for row, kind := range credentialKinds {
		proofs := make([]identity.Proof, 0, 200)
		for range cap(proofs) {
			p, err := kind.proof(f.context(r.ctx), s, f.some[rand.IntN(len(f.some))])
			if err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			proofs = append(proofs, p)
		}
		var took []time.Duration
		for started := time.Now(); time.Since(started) < r.time/2; {
			at := time.Now()
			if _, err := s.Resolver.Resolve(r.ctx, proofs[len(took)%len(proofs)]); err != nil {
				return fmt.Errorf("%s: %w", kind.name, err)
			}
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		if column == 0 {
			*t = append(*t, []string{kind.name})
		}
		(*t)[row] = append((*t)[row], fmt.Sprintf("%v, %v", quantile(took, 0.5), quantile(took, 0.99)))
	}
	return nil
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func enrolOne(s *server.Server, tx store.Tx, f *fleet, r *run) error {
	_, _, err := s.PSK.CreateIn(f.context(r.ctx), tx, newKey())
	return err
}

// backup measures a copy of the whole store, and what writers feel of it.
func backup(r *run, s *server.Server, f *fleet) error {
	db, ok := s.DB.(*bolt.Engine)
	if !ok {
		return errors.New("the store is no file")
	}
	write := func() error {
		return db.Update(r.ctx, func(tx store.Tx) error { return enrolOne(s, tx, f, r) })
	}
	_, alone, err := r.rate(4, write)
	if err != nil {
		return err
	}
	path := filepath.Join(r.dir, "backup.db")
	defer os.Remove(path)
	var took time.Duration
	var failed error
	var copying sync.WaitGroup
	done := make(chan struct{})
	copying.Go(func() {
		defer close(done)
		started := time.Now()
		failed = db.Snapshot(r.ctx, path)
		took = time.Since(started)
	})
	var meanwhile []time.Duration
	for copied := false; !copied; {
		select {
		case <-done:
			copied = true
		default:
			started := time.Now()
			if err := write(); err != nil {
				return err
			}
			meanwhile = append(meanwhile, time.Since(started))
		}
	}
	copying.Wait()
	if failed != nil {
		return failed
	}
	slices.Sort(meanwhile)
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	before, during := quantile(alone, 0.99), quantile(meanwhile, 0.99)
	v := float64(during) / float64(before)
	fmt.Fprintf(r.out, "A backup of %s MB takes %s s. The p99 of writes is %v without it and %v meanwhile: %s times, %s.\n\n",
		thousands(int(info.Size()>>20)), figure(took.Seconds()), before, during, figure(v), r.verdict(v, atMost(2, " times")))
	return nil
}
