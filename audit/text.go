package audit

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"
)

// text is r as [json.Marshal] writes it, which the MAC of a record is over. It is written
// without reflection: every change anywhere waits for it.
func (r *Record) text() []byte {
	b := make([]byte, 0, 512)
	b = strconv.AppendUint(append(b, `{"seq":`...), r.Seq, 10)
	b = append(r.At.AppendFormat(append(b, `,"at":"`...), time.RFC3339Nano), '"')
	b = appendText(append(b, `,"organisation":`...), r.Org)
	b = appendText(append(b, `,"actor":{"kind":`...), string(r.Actor.Kind))
	b = appendMember(b, `,"id":`, r.Actor.ID)
	b = append(appendMember(b, `,"credential":`, string(r.Actor.Credential)), '}')
	b = appendText(append(b, `,"action":`...), r.Action)
	b = appendMember(b, `,"target":`, r.Target)
	b = appendMember(b, `,"device":`, r.Device)
	b = appendMember(b, `,"request_id":`, r.RequestID)
	if len(r.Detail) > 0 {
		b = append(b, `,"detail":{`...)
		for i, key := range slices.Sorted(maps.Keys(r.Detail)) {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendText(append(appendText(b, key), ':'), r.Detail[key])
		}
		b = append(b, '}')
	}
	return append(b, `,"mac":null}`...) // it is not over itself
}

// appendMember adds a member that is left out if it is empty.
func appendMember(b []byte, name, value string) []byte {
	if value == "" {
		return b
	}
	return appendText(append(b, name...), value)
}

// appendText adds a string. What is not plain is left to encoding/json.
func appendText(b []byte, s string) []byte {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, err := json.Marshal(s)
			if err != nil {
				panic("audit: " + err.Error()) // every string can be written
			}
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}
