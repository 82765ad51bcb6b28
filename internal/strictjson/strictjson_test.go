package strictjson_test

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"kluis/internal/strictjson"
)

func TestObject(t *testing.T) {
	t.Parallel()
	m, err := strictjson.Object([]byte(` {"a": 1, "A": {"b": [1, {"c": null}]}} `))
	if err != nil || !slices.Equal(slices.Sorted(maps.Keys(m)), []string{"A", "a"}) || string(m["a"]) != "1" {
		t.Errorf("%v, %v", m, err)
	}
	for _, s := range []string{
		``, `null`, `1`, `[]`, `{`, `{}}`, `{} {}`, `{}x`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1,}`, `{"a":1,"a":1}`, `{"\u0061":1,"a":1}`,
		`{"x":{"a":1,"a":2}}`, `{"x":[{"a":1,"a":2}]}`, "{\"\xff\":1}", `{"a":` + strings.Repeat("[", 9) + strings.Repeat("]", 9) + `}`,
		strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9),
	} {
		if m, err := strictjson.Object([]byte(s)); !errors.Is(err, strictjson.ErrMalformed) || m != nil {
			t.Errorf("%q: %v, %v", s, m, err)
		}
	}
}

// What is accepted reads the same with encoding/json, member by member.
func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1}`, `{"a":[{"b":"c"}],"d":null}`, `{"a":1,"a":2}`, `{"a":1} `, `{"\ud800":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := strictjson.Object(b)
		if err != nil {
			if !errors.Is(err, strictjson.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		var std map[string]any
		if err := json.Unmarshal(b, &std); err != nil || len(std) != len(m) {
			t.Fatalf("%v: %d members, %d", err, len(std), len(m))
		}
		for name, raw := range m {
			var v any
			if err := json.Unmarshal(raw, &v); err != nil || !reflect.DeepEqual(v, std[name]) {
				t.Fatalf("%v: %v, %v", err, v, std[name])
			}
		}
	})
}
