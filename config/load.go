package config

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"
)

// EnvPrefix is what the name of every environment variable begins with.
const EnvPrefix = "KEYSTEAD_"

// Options say where to read the configuration from.
type Options struct {
	File   string              // "" reads no file
	Getenv func(string) string // os.Getenv if nil; an empty variable counts as none
	Set    []string            // "key=value", from the command line
}

// Origin says where a value came from.
type Origin string

// FromDefault is the origin of a value that nobody set.
const FromDefault Origin = "default"

// Load reads the configuration and checks it. Its error lists everything that is
// wrong, a line each; a key it does not know is wrong, as a misspelt setting must
// not be a silent default.
func Load(o Options) (Config, error) {
	c := Default()
	keys := leaves(reflect.ValueOf(&c).Elem(), "")
	c.origins = make(map[string]Origin, len(keys))
	v := viper.New()
	for key, field := range keys {
		v.SetDefault(key, field.Interface())
		c.origins[key] = FromDefault
	}
	fromFile, err := readFile(o.File, keys)
	if fromFile == nil {
		return Config{}, err
	}
	faults := []error{err}
	for key, value := range fromFile {
		c.put(v, key, value, Origin(o.File))
	}
	c.readEnv(v, keys, o.Getenv)
	faults = append(faults, c.readSet(v, keys, o.Set))
	for _, key := range sorted(keys) {
		if c.origins[key] != FromDefault {
			faults = append(faults, decode(v.Get(key), keys[key], key, c.origins[key]))
		}
	}
	if err := errors.Join(append(faults, c.Validate())...); err != nil {
		return Config{}, err
	}
	return c, nil
}

func (c *Config) put(v *viper.Viper, key string, value any, from Origin) {
	v.Set(key, value)
	c.origins[key] = from
}

// leaves maps the path of every key below v, a struct, to its field.
func leaves(v reflect.Value, path string) map[string]reflect.Value {
	all := map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if !f.IsExported() {
			continue
		}
		key := path
		if name := tag(f); name != "" {
			key = strings.TrimPrefix(path+"."+name, ".")
		} // else squashed: its keys are of this level
		if f.Type.Kind() == reflect.Struct {
			maps.Copy(all, leaves(v.Field(i), key))
			continue
		}
		all[key] = v.Field(i)
	}
	return all
}

// readFile returns the values of the keys that the file at path sets, nil if it
// cannot be read at all, and what is wrong with it.
func readFile(path string, keys map[string]reflect.Value) (map[string]any, error) {
	if path == "" {
		return map[string]any{}, nil
	}
	v := viper.New()
	v.SetConfigFile(path)
	v.SetConfigType("yaml")
	if err := v.ReadInConfig(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: there is no such file", path)
		}
		return nil, fmt.Errorf("%s: %s", path, strings.TrimPrefix(err.Error(), "While parsing config: "))
	}
	values := map[string]any{}
	var faults []error
	for _, key := range slices.Sorted(slices.Values(v.AllKeys())) {
		value := v.Get(key)
		_, known := keys[key]
		switch section := isSection(key, keys); {
		case known && value == nil:
			faults = append(faults, fmt.Errorf("%s: has no value in %s; write \"\" for an empty one, or take the line out", key, path))
		case known:
			values[key] = value
		case section && value == nil: // a heading with nothing under it
		case section:
			faults = append(faults, fmt.Errorf("%s: is a section in %s, with the keys %s", key, path, strings.Join(keysOf(key, keys), ", ")))
		default:
			faults = append(faults, unknown(key, path, keys))
		}
	}
	return values, errors.Join(faults...)
}

func isSection(key string, keys map[string]reflect.Value) bool { return len(keysOf(key, keys)) > 0 }

// keysOf returns the keys of a section, without its name.
func keysOf(section string, keys map[string]reflect.Value) []string {
	var all []string
	for _, key := range sorted(keys) {
		if rest, ok := strings.CutPrefix(key, section+"."); ok {
			all = append(all, rest)
		}
	}
	return all
}

// EnvName returns the environment variable that sets key.
func EnvName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

func (c *Config) readEnv(v *viper.Viper, keys map[string]reflect.Value, getenv func(string) string) {
	if getenv == nil {
		getenv = os.Getenv
	}
	for key := range keys {
		if text := getenv(EnvName(key)); text != "" {
			c.put(v, key, text, Origin(EnvName(key)))
		}
	}
}

func (c *Config) readSet(v *viper.Viper, keys map[string]reflect.Value, set []string) error {
	var faults []error
	for _, pair := range set {
		key, text, ok := strings.Cut(pair, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		switch _, known := keys[key]; {
		case !ok:
			faults = append(faults, fmt.Errorf("--set %s: is not key=value", pair))
		case known:
			c.put(v, key, text, "--set")
		default:
			faults = append(faults, unknown(key, "--set", keys))
		}
	}
	return errors.Join(faults...)
}

// unknown names the key that is nearest to one that does not exist.
func unknown(key, where string, keys map[string]reflect.Value) error {
	best, least := "", max(2, len(key)/3)
	for _, known := range sorted(keys) {
		d := distance(key, known)
		if last := known[strings.LastIndexByte(known, '.')+1:]; last == key { // only the section is missing
			d = 0
		}
		if d < least || d == least && best == "" {
			best, least = known, d
		}
	}
	if best == "" {
		return fmt.Errorf("%s: there is no such key (%s); keystead config print lists those there are", key, where)
	}
	return fmt.Errorf("%s: there is no such key (%s); did you mean %s?", key, where, best)
}

// distance is how many characters have to be put in, taken out or replaced to
// come from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// decode sets field to value, which may be text from the environment.
func decode(value any, field reflect.Value, key string, from Origin) error {
	into := reflect.New(field.Type())
	d, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result:           into.Interface(),
		WeaklyTypedInput: true,
		ErrorUnused:      true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.TextUnmarshallerHookFunc(),
			mapstructure.StringToTimeDurationHookFunc(),
			words,
		),
	})
	if err != nil {
		return fmt.Errorf("config: %s: %w", key, err)
	}
	if err := refuse(value, field.Type()); err != nil {
		return fmt.Errorf("%s: %w (%s)", key, err, from)
	}
	if err := d.Decode(value); err != nil {
		if want := form(field.Type()); want != "" {
			return fmt.Errorf("%s: %q is not %s (%s)", key, fmt.Sprint(value), want, from)
		}
		return fmt.Errorf("%s: %w (%s)", key, err, from)
	}
	field.Set(into.Elem())
	return nil
}

// refuse stops what weak typing would turn into something nobody meant.
func refuse(value any, t reflect.Type) error {
	_, number := value.(int)
	if t == reflect.TypeFor[time.Duration]() && number && value != 0 {
		return fmt.Errorf("%v has no unit; write %vs for seconds", value, value)
	}
	if _, list := value.([]any); list && t.Kind() != reflect.Slice {
		return errors.New("is one value, not a list")
	}
	if _, truth := value.(bool); truth && t.Kind() != reflect.Bool {
		return fmt.Errorf("%v is not %s", value, form(t))
	}
	return nil
}

// form says how a value of type t is written.
func form(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "a duration, such as 500ms, 10s or 24h"
	case t == reflect.TypeFor[Size]():
		return "a size, such as 64KiB or 2GiB"
	}
	switch t.Kind() { //nolint:exhaustive // the rest says what is wrong by itself
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	case reflect.String:
		return "a word"
	case reflect.Slice:
		return "a list"
	}
	return ""
}

// words turns text into a list, as the environment has it: a,b,c.
func words(from, to reflect.Type, value any) (any, error) {
	if from.Kind() != reflect.String || to != reflect.TypeFor[[]string]() {
		return value, nil
	}
	list := []string{}
	for word := range strings.SplitSeq(reflect.ValueOf(value).String(), ",") {
		if word = strings.TrimSpace(word); word != "" {
			list = append(list, word)
		}
	}
	return list, nil
}

func sorted(keys map[string]reflect.Value) []string {
	all := make([]string, 0, len(keys))
	for key := range keys {
		all = append(all, key)
	}
	slices.Sort(all)
	return all
}
