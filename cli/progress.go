package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// bar shows on standard error how far a long command is, where that is a
// terminal. It leaves standard output to what was asked for.
type bar struct {
	w     io.Writer // nil if nobody looks
	what  string
	total int
}

const barWidth = 40

// progress starts a bar for total things.
func (a *app) progress(what string, total int) *bar {
	b := &bar{what: what, total: total}
	if f, ok := a.stderr.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			b.w = f
		}
	}
	b.at(0)
	return b
}

// at shows that done of the total are done.
func (b *bar) at(done int) {
	if b.w == nil {
		return
	}
	full := barWidth * done / b.total
	fmt.Fprintf(b.w, "\r[%s%s] %3d%% %d/%d %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), 100*done/b.total, done, b.total, b.what)
}

// end leaves the line.
func (b *bar) end() {
	if b.w != nil {
		fmt.Fprintln(b.w)
	}
}
