package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// contender is one of those that are measured in turns.
type contender struct {
	name string
	once func() (float64, error) // one measurement
}

// series is what was measured of a contender.
type series struct {
	name   string
	values []float64
}

// inTurns measures each contender in turn, as often as the settings say, after a
// first time that does not count.
func (r *run) inTurns(all ...contender) ([]series, error) {
	list := make([]series, len(all))
	for round := range r.rounds + 1 {
		for i, c := range all {
			if r.ctx.Err() != nil {
				return nil, r.ctx.Err()
			}
			runtime.GC()
			v, err := c.once()
			if err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			list[i].name = c.name
			if round > 0 {
				list[i].values = append(list[i].values, v)
			}
		}
	}
	return list, nil
}

func (s series) median() float64 {
	v := slices.Sorted(slices.Values(s.values))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// text is the median, with the least and the most.
func (s series) text(unit string) string {
	return fmt.Sprintf("%s%s [%s–%s]", figure(s.median()), unit, figure(slices.Min(s.values)), figure(slices.Max(s.values)))
}

// figure writes a number with three digits that mean something.
func figure(v float64) string {
	switch {
	case v >= 10_000:
		s := strconv.Itoa(int(v+50) / 100 * 100)
		return s[:len(s)-3] + "," + s[len(s)-3:]
	case v >= 100:
		return strconv.Itoa(int(v + 0.5))
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// ratio is the median of a over that of b, pair by pair: what drifts between
// rounds cancels.
func ratio(a, b series) float64 {
	pairs := series{values: make([]float64, len(a.values))}
	for i := range pairs.values {
		pairs.values[i] = a.values[i] / b.values[i]
	}
	return pairs.median()
}

// goal is what a figure should be.
type goal struct {
	limit float64
	most  bool // the figure should be at most the limit, else at least
	unit  string
}

func atLeast(v float64, unit string) goal { return goal{v, false, unit} }
func atMost(v float64, unit string) goal  { return goal{v, true, unit} }

// verdict says what the goal is and whether v reaches it.
func (r *run) verdict(v float64, g goal) string {
	word, reached := "at least", v >= g.limit
	if g.most {
		word, reached = "at most", v <= g.limit
	}
	text := fmt.Sprintf("%s %s%s: ", word, strconv.FormatFloat(g.limit, 'f', -1, 64), g.unit)
	if reached {
		return text + "reached"
	}
	r.missed++
	return text + "**missed**"
}

// table writes rows of Markdown, the first as its head.
func (r *run) table(rows ...[]string) {
	for i, row := range rows {
		fmt.Fprintf(r.out, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(r.out, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
}

// head says where and of what the figures are.
func (r *run) head() {
	fmt.Fprintf(r.out, "# Benchmarks\n\n")
	fmt.Fprintf(r.out, "Written by `make bench`. Medians of %d rounds that take turns, with the least and the most in brackets; ratios are medians of the ratios of each round.\n\n", r.rounds)
	versions := []string{runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "go.etcd.io/bbolt", "github.com/pion/dtls/v3", "github.com/labstack/echo/v4":
				versions = append(versions, filepath.Base(strings.TrimSuffix(strings.TrimSuffix(m.Path, "/v3"), "/v4"))+" "+m.Version)
			}
		}
	}
	r.table(
		[]string{"what", "is"},
		[]string{"date", time.Now().UTC().Format("2006-01-02 15:04 UTC")},
		[]string{"machine", fmt.Sprintf("%d × %s, %s of memory, Linux %s", runtime.NumCPU(), grep("/proc/cpuinfo", "model name"), grep("/proc/meminfo", "MemTotal"), read("/proc/sys/kernel/osrelease"))},
		[]string{"load before", strings.Join(strings.Fields(read("/proc/loadavg"))[:3], ", ") + " processes; more than one means that others ran, and that figures in time by the clock are too bad"},
		[]string{"versions", strings.Join(versions, ", ")},
		[]string{"tree", command("git", "describe", "--always", "--dirty")},
	)
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

// grep returns what a file of /proc says of key.
func grep(path, key string) string {
	for line := range strings.Lines(read(path)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return "unknown"
}

func command(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// cpu returns the time a process has spent on CPUs, by its own account.
func cpu(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	var ticks int
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(string(f))
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// memory returns the resident memory of a process in bytes: all of it, and that
// which is not the database's file in the page cache.
func memory(pid int) (all, anonymous float64) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	kb := func(key string) float64 {
		n, _ := strconv.ParseFloat(strings.TrimSuffix(grep(path, key), " kB"), 64)
		return n * 1024
	}
	return kb("VmRSS"), kb("RssAnon")
}

// pinned returns the command that runs name on one CPU, if there are several.
func pinned(cpu int, name string, args ...string) *exec.Cmd {
	if _, err := exec.LookPath("taskset"); err == nil && runtime.NumCPU() > 1 {
		args = append([]string{"-c", strconv.Itoa(cpu), name}, args...)
		name = "taskset"
	}
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}
