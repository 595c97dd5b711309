package server

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/labstack/echo/v4"

	"keystead/fault"
)

// The CreatorDev device server's REST API: what its resources look like on the
// wire. Clients of it choose between JSON and XML, know answers by vendor media
// types and find their way by links. A view is written once, as a resource;
// the two encodings differ in form and in order only.

// resource is one object of the API. In JSON its members come before its links,
// in XML after them.
type resource struct {
	root    string // the XML element
	media   string // the vendor media type, between "application/vnd.imgtec." and the suffix
	members []member
	links   []link
}

// member is one property: a string, bool, int, resource or []resource. Nil is left out.
type member struct {
	name  string
	value any
}

// link is where something else is. media names its vendor type, "" for none.
type link struct{ rel, href, media string }

// form is how an answer is encoded, as the request's Accept chose it.
type form struct {
	xml   bool
	plain bool // application/json in place of vendor types
}

// formOf chooses as the reference does: no Accept is vendor JSON, "*/*" anywhere
// is plain JSON, and else the first field that ends in xml or json decides.
func formOf(r *http.Request) form {
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if strings.Contains(accept, "*/*") {
		return form{plain: true}
	}
	for field := range strings.FieldsFuncSeq(accept, func(c rune) bool { return c == ',' || c == ';' }) {
		switch field = strings.ToLower(strings.TrimSpace(field)); {
		case strings.HasSuffix(field, "xml"):
			return form{xml: true}
		case strings.HasSuffix(field, "json"):
			return form{}
		}
	}
	return form{}
}

// mediaType returns the media type of the named resource.
func (f form) mediaType(name string) string {
	switch {
	case f.plain:
		return echo.MIMEApplicationJSON
	case f.xml:
		return "application/vnd.imgtec." + name + "+xml"
	}
	return "application/vnd.imgtec." + name + "+json"
}

// write answers with r.
func (r resource) write(c echo.Context, status int) error {
	f := formOf(c.Request())
	var b bytes.Buffer
	if f.xml {
		b.WriteString(`<?xml version="1.0" encoding="utf-8"?>`)
		r.xml(&b, f, r.root)
	} else {
		r.json(&b, f)
	}
	c.Response().Header().Add("Vary", "Accept")
	return c.Blob(status, f.mediaType(r.media), b.Bytes())
}

func (r resource) json(b *bytes.Buffer, f form) {
	comma := byte('{')
	name := func(n string) {
		b.WriteByte(comma)
		b.Write(jsonText(n))
		b.WriteByte(':')
		comma = ','
	}
	for _, m := range r.members {
		switch v := m.value.(type) {
		case nil:
		case []resource:
			if len(v) == 0 {
				continue
			}
			name(m.name)
			b.WriteByte('[')
			for i, item := range v {
				if i > 0 {
					b.WriteByte(',')
				}
				item.json(b, f)
			}
			b.WriteByte(']')
		case resource:
			name(m.name)
			v.json(b, f)
		case string:
			name(m.name)
			b.Write(jsonText(v))
		default:
			name(m.name)
			fmt.Fprint(b, v)
		}
	}
	if len(r.links) > 0 {
		name("Links")
		b.WriteByte('[')
		for i, l := range r.links {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(b, `{"rel":%s,"href":%s`, jsonText(l.rel), jsonText(l.href))
			if l.media != "" {
				fmt.Fprintf(b, `,"type":%s`, jsonText(f.mediaType(l.media)))
			}
			b.WriteByte('}')
		}
		b.WriteByte(']')
	}
	if comma == '{' {
		b.WriteByte('{')
	}
	b.WriteByte('}')
}

// jsonText leaves "+" and "&", which are in every link, as they are.
func jsonText(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return []byte(`""`) // no string fails to encode
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func (r resource) xml(b *bytes.Buffer, f form, element string) {
	fmt.Fprintf(b, "<%s>", element)
	if len(r.links) > 0 {
		b.WriteString("<Links>")
		for _, l := range r.links {
			fmt.Fprintf(b, `<Link rel="%s" href="%s"`, xmlText(l.rel), xmlText(l.href))
			if l.media != "" {
				fmt.Fprintf(b, ` type="%s"`, xmlText(f.mediaType(l.media)))
			}
			b.WriteString("/>")
		}
		b.WriteString("</Links>")
	}
	for _, m := range r.members {
		switch v := m.value.(type) {
		case nil:
		case []resource:
			if len(v) == 0 {
				continue
			}
			fmt.Fprintf(b, "<%s>", m.name)
			for _, item := range v {
				item.xml(b, f, item.root)
			}
			fmt.Fprintf(b, "</%s>", m.name)
		case resource:
			v.xml(b, f, m.name)
		default:
			fmt.Fprintf(b, "<%s>%s</%s>", m.name, xmlText(fmt.Sprint(v)), m.name)
		}
	}
	fmt.Fprintf(b, "</%s>", element)
}

func xmlText(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return "" // a strings.Builder takes every write
	}
	return b.String()
}

// bindCreator reads the body of a request, JSON or XML by its Content-Type,
// into v. It reports false for a request without a body.
func bindCreator(c echo.Context, v any) (bool, error) {
	body, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return false, fault.Wrap(fault.Invalid, err, "the body could not be read")
	}
	if len(body) == 0 {
		return false, nil
	}
	kind, _, err := mime.ParseMediaType(c.Request().Header.Get("Content-Type"))
	switch { // ParseMediaType returns lower case
	case err != nil || !strings.HasPrefix(kind, "application/"):
		return true, errCreatorMedia
	case !utf8.Valid(body):
		return true, fault.New(fault.Invalid, "the body is not UTF-8")
	case kind == "application/json", strings.HasSuffix(kind, "+json"):
		return true, looseJSON(body, v)
	case kind == "application/xml", strings.HasSuffix(kind, "+xml"):
		if err := xml.Unmarshal(body, v); err != nil {
			return true, fault.Wrap(fault.Invalid, err, "the body is not the XML this resource takes: %v", err)
		}
		return true, nil
	}
	return true, errCreatorMedia
}

var errCreatorMedia = fault.New(fault.Unsupported, "send the body as application/json or application/xml, or as a vendor type that ends in +json or +xml")

// mustBindCreator is bindCreator for requests that need a body.
func mustBindCreator(c echo.Context, v any) error {
	present, err := bindCreator(c, v)
	if err == nil && !present {
		return fault.New(fault.Invalid, "the request needs a body")
	}
	return err
}

// creatorURL returns the absolute link to a path of this server, under the name
// the client called it by.
func creatorURL(c echo.Context, elem ...string) string {
	var u strings.Builder
	u.WriteString("https://" + c.Request().Host)
	for _, e := range elem {
		u.WriteString("/" + url.PathEscape(e))
	}
	return u.String()
}

// Limits on paging by number.
const (
	creatorPage    = 20
	creatorMaxPage = 1000
)

// creatorRange is the part of a list a request asks for.
type creatorRange struct{ start, size int }

// rangeOf reads ?startIndex= and ?pageSize=. What is no number counts as left out.
func rangeOf(c echo.Context) (creatorRange, error) {
	r := creatorRange{0, creatorPage}
	if n, err := strconv.ParseInt(c.QueryParam("startIndex"), 10, 32); err == nil {
		r.start = int(n)
	}
	if n, err := strconv.ParseInt(c.QueryParam("pageSize"), 10, 32); err == nil {
		r.size = min(max(0, int(n)), creatorMaxPage)
	}
	if r.start < 0 {
		return r, fault.New(fault.Invalid, "startIndex must not be negative")
	}
	return r, nil
}

// pageOf returns the PageInfo and Items members of a list of total items.
func (r creatorRange) pageOf(c echo.Context, total int, items []resource) []member {
	count := max(0, min(r.start+r.size, total)-r.start)
	info := resource{members: []member{{"TotalCount", total}, {"ItemsCount", count}, {"StartIndex", r.start}}}
	if r.start > 0 {
		info.links = append(info.links, link{"first", r.href(c, 0), ""}, link{"prev", r.href(c, r.start-r.size), ""})
	}
	if r.start+count < total {
		info.links = append(info.links, link{"next", r.href(c, r.start+count), ""}, link{"last", r.href(c, total-r.size), ""})
	}
	return []member{{"PageInfo", info}, {"Items", items}}
}

// href returns the link to the part of the same list from start on.
func (r creatorRange) href(c echo.Context, start int) string {
	q := c.Request().URL.Query()
	for _, dropped := range []string{"referrerUrl", "session_token", "startIndex", "pageSize"} {
		q.Del(dropped)
	}
	q.Set("startIndex", strconv.Itoa(max(0, start)))
	if r.size != creatorPage {
		q.Set("pageSize", strconv.Itoa(r.size))
	}
	return "https://" + c.Request().Host + c.Request().URL.EscapedPath() + "?" + q.Encode()
}

// selfLinks returns the links by which a resource is read, changed and removed.
func selfLinks(href string, update bool) []link {
	l := []link{{"self", href, ""}}
	if update {
		l = append(l, link{"update", href, ""})
	}
	return append(l, link{"remove", href, ""})
}

// creatorProblem writes an error as this API does. It is the wire of its routes.
func creatorProblem(c echo.Context, status int, p problem) error {
	return resource{
		root: "Error", media: "error",
		members: []member{{"ErrorCode", strings.ReplaceAll(http.StatusText(status), " ", "")}, {"ErrorMessage", p.Error}},
	}.write(c, status)
}
