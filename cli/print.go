package cli

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// formats are what -o takes.
var formats = []string{"table", "json", "yaml", "csv"}

func (a *app) checkFormat() error {
	if !slices.Contains(formats, a.output) {
		return fmt.Errorf("-o %s: the formats are %s", a.output, strings.Join(formats, ", "))
	}
	return nil
}

// column is one column of a table, or one line of a single thing.
type column[V any] struct {
	name string
	cell func(V) string
	wide bool // too much for a list as a table; in CSV and for a single thing it is there
}

// tableChunk is how many rows of a table are lined up with each other.
const tableChunk = 500

// printList prints the items of a list as they arrive: as columns, as one JSON
// array, as one YAML sequence, or as CSV.
func printList[V any](a *app, items iter.Seq2[V, error], columns []column[V]) error {
	switch a.output {
	case "json":
		return jsonList(a.stdout, items)
	case "yaml":
		return yamlList(a.stdout, items)
	case "csv":
		return csvList(a.stdout, items, columns)
	}
	columns = slices.DeleteFunc(slices.Clone(columns), func(c column[V]) bool { return c.wide })
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	head := make([]string, len(columns))
	for i, c := range columns {
		head[i] = strings.ToUpper(c.name)
	}
	rows := 0
	for v, err := range items {
		if err != nil {
			return errors.Join(err, w.Flush())
		}
		if rows%tableChunk == 0 {
			if err := w.Flush(); err != nil {
				return err
			}
			fmt.Fprintln(w, strings.Join(head, "\t"))
		}
		rows++
		cells := make([]string, len(columns))
		for i, c := range columns {
			cells[i] = orDash(strings.ReplaceAll(clean(c.cell(v)), "\n", ", "))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if rows == 0 {
		fmt.Fprintln(a.stderr, "none")
	}
	return w.Flush()
}

// printOne prints one thing: a line for each column, or the thing itself as
// JSON, YAML or CSV.
func printOne[V any](a *app, v V, columns []column[V]) error {
	switch a.output {
	case "json":
		return printJSON(a.stdout, v)
	case "yaml":
		return yamlWrite(a.stdout, v)
	case "csv":
		return csvList(a.stdout, func(yield func(V, error) bool) { yield(v, nil) }, columns)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, c := range columns {
		name := c.name + ":"
		for line := range strings.SplitSeq(orDash(clean(c.cell(v))), "\n") {
			fmt.Fprintf(w, "%s\t%s\n", name, line)
			name = ""
		}
	}
	return w.Flush()
}

// done says on standard error that something was done, so that standard output
// stays what was asked for.
func (a *app) done(format string, args ...any) {
	fmt.Fprintln(a.stderr, clean(fmt.Sprintf(format, args...)))
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func jsonList[V any](w io.Writer, items iter.Seq2[V, error]) error {
	sep := "["
	for v, err := range items {
		if err != nil {
			return err
		}
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("  ", "  ")
		if err := e.Encode(v); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n  %s", sep, bytes.TrimSpace(b.Bytes())); err != nil {
			return err
		}
		sep = ","
	}
	end := "\n]\n"
	if sep == "[" {
		end = "[]\n"
	}
	_, err := io.WriteString(w, end)
	return err
}

func yamlList[V any](w io.Writer, items iter.Seq2[V, error]) error {
	empty := true
	for v, err := range items {
		if err != nil {
			return err
		}
		if err := yamlWrite(w, []V{v}); err != nil {
			return err
		}
		empty = false
	}
	if empty {
		_, err := io.WriteString(w, "[]\n")
		return err
	}
	return nil
}

// yamlWrite writes v with the names and the order of its JSON: JSON is YAML, so
// it is read as such and written in the other style.
func yamlWrite(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(b, &node); err != nil {
		return err
	}
	block(&node)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&node); err != nil {
		return err
	}
	return e.Close()
}

func block(n *yaml.Node) {
	if len(n.Content) > 0 || n.Kind == yaml.ScalarNode {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}

func csvList[V any](w io.Writer, items iter.Seq2[V, error], columns []column[V]) error {
	out := csv.NewWriter(w)
	row := make([]string, len(columns))
	for i, c := range columns {
		row[i] = strings.ReplaceAll(c.name, " ", "_")
	}
	if err := out.Write(row); err != nil {
		return err
	}
	for v, err := range items {
		if err != nil {
			out.Flush()
			return err
		}
		for i, c := range columns {
			row[i] = c.cell(v)
		}
		if err := out.Write(row); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// clean is s without what could drive a terminal: names come from devices.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '\uFFFD'
	}, s)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// when shows a time; the zero time is "".
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// whenever shows a time that may not be there.
func whenever(t *time.Time) string {
	if t == nil {
		return ""
	}
	return when(*t)
}

// pairs shows a map as key=value, in order, one a line.
func pairs(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+m[k])
	}
	return strings.Join(lines, "\n")
}
