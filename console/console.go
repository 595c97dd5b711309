// Package console is the web console: the pages on which people look at their fleet and
// administer it. It owns files and how they are served, and nothing else: what the pages
// show and do they ask of the REST API, as any other client does.
//
// The files are plain: one page, one style sheet, a few ES modules. They are embedded, under
// an address that has their hash, so that browsers keep them for good and a new version of
// the server is seen whole at once.
package console

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
)

//go:embed web
var web embed.FS

// Policy is the content security policy of the page: nothing from elsewhere, no script and
// no style but the files, no page around it. With trusted types there is no way either
// to make text into markup: what devices are called stays text.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// page is the one page, everything else is a file it loads.
const page = "index.html"

// file is one answer.
type file struct {
	body []byte
	kind string // media type
	etag string
}

// tree is every file, by its path below the console's.
type tree struct {
	files   map[string]file
	version string
}

// files are read once: they are part of the program.
var files = sync.OnceValue(read)

func read() tree {
	bodies := map[string][]byte{}
	all := sha256.New()
	err := fs.WalkDir(web, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := web.ReadFile(name)
		bodies[path.Base(name)] = b
		all.Write([]byte(name + "\x00" + strconv.Itoa(len(b)) + "\x00"))
		all.Write(b)
		return err
	})
	if err != nil {
		panic(err) // the files are embedded: they are there
	}
	t := tree{files: map[string]file{}, version: hex.EncodeToString(all.Sum(nil))[:16]}
	for name, b := range bodies {
		at := t.version + "/" + name
		if name == page {
			at, b = "", []byte(strings.ReplaceAll(string(b), "{version}", t.version))
		}
		sum := sha256.Sum256(b)
		t.files[at] = file{body: b, kind: kindOf(name), etag: `"` + hex.EncodeToString(sum[:16]) + `"`}
	}
	return t
}

// kindOf is the media type of a file. The system's table is not asked: it may say anything.
func kindOf(name string) string {
	switch path.Ext(name) {
	case ".html":
		return "text/html; charset=utf-8"
	case ".css":
		return "text/css; charset=utf-8"
	case ".js":
		return "text/javascript; charset=utf-8"
	case ".svg":
		return "image/svg+xml"
	}
	return "application/octet-stream"
}

// Version names the set of files that is served.
func Version() string { return files().version }

// Serve answers a GET for the file at a path below the console's, "" for the page. It
// reports false, and writes nothing, if there is none: paths are looked up, never opened.
func Serve(w http.ResponseWriter, r *http.Request, at string) bool {
	f, ok := files().files[at]
	if !ok {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("ETag", f.etag)
	h.Set("Content-Security-Policy", Policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=(), usb=(), clipboard-read=()")
	if at == "" {
		h.Set("Cache-Control", "no-cache") // asked for anew each time, sent when it has changed
	} else {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if r.Header.Get("If-None-Match") == f.etag {
		w.WriteHeader(http.StatusNotModified)
		return true
	}
	h.Set("Content-Length", strconv.Itoa(len(f.body)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(f.body) // a browser that has gone away is no fault
	return true
}
