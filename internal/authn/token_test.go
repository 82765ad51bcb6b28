package authn

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"kluis/authz"
	"kluis/internal/strictjson"
)

func TestAuthenticate(t *testing.T) {
	t.Parallel()
	facts := func(gln string, change func(*authz.SupplierFacts)) *authz.Supplier {
		f := authz.SupplierFacts{
			GLN: mustGLN(t, gln), Name: "Supplier", Scopes: []string{ScopeReadings},
			Certificates: []authz.Certificate{{Thumbprint: leaf, NotAfter: noon.AddDate(1, 0, 0)}},
		}
		if change != nil {
			change(&f)
		}
		s, err := authz.NewSupplier(nil, f, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, noon.Add(-time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	good := facts(supplier, nil)
	for name, c := range map[string]struct {
		record *authz.Supplier
		claims func(map[string]any)
		after  time.Duration
		reason string
		kind   error
	}{
		"good":                               {record: good},
		"the last moment":                    {record: good, after: 300*time.Second - 1},
		"expired since":                      {record: good, after: 300 * time.Second, reason: "expired"},
		"no record":                          {reason: "record_of_another_supplier"},
		"another's record, same certificate": {record: facts(other, nil), reason: "record_of_another_supplier"},
		"suspended":                          {record: facts(supplier, func(f *authz.SupplierFacts) { f.Suspended = true }), reason: "supplier_suspended"},
		"certificate unknown":                {record: facts(supplier, func(f *authz.SupplierFacts) { f.Certificates[0].Thumbprint = otherLeaf }), reason: "certificate_not_registered"},
		"no certificates":                    {record: facts(supplier, func(f *authz.SupplierFacts) { f.Certificates = nil }), reason: "certificate_not_registered"},
		"certificate revoked":                {record: facts(supplier, func(f *authz.SupplierFacts) { f.Certificates[0].RevokedAt = noon.Add(-2 * time.Hour) }), reason: "certificate_revoked"},
		"certificate expired":                {record: facts(supplier, func(f *authz.SupplierFacts) { f.Certificates[0].NotAfter = noon }), reason: "certificate_expired"},
		"scope withdrawn":                    {record: facts(supplier, func(f *authz.SupplierFacts) { f.Scopes = nil }), reason: "scope_not_in_record", kind: ErrInsufficientScope},
		"scope not in token":                 {record: good, claims: func(m map[string]any) { m["scope"] = "other" }, reason: "scope_not_in_token", kind: ErrInsufficientScope},
		"no scope":                           {record: good, claims: func(m map[string]any) { delete(m, "scope") }, reason: "scope_not_in_token", kind: ErrInsufficientScope},
		"scope only a prefix":                {record: good, claims: func(m map[string]any) { m["scope"] = "readings" }, reason: "scope_not_in_token", kind: ErrInsufficientScope},
		"scope among others":                 {record: good, claims: func(m map[string]any) { m["scope"] = "x " + ScopeReadings + " y" }},
		"suspended, no scope":                {record: facts(supplier, func(f *authz.SupplierFacts) { f.Suspended, f.Scopes = true, nil }), reason: "supplier_suspended"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := w.newSpec()
			if c.claims != nil {
				c.claims(s.claims)
			}
			tok, err := w.verifier.Verify(t.Context(), s.sign(t), leaf)
			if err != nil {
				t.Fatal(err)
			}
			caller, err := tok.Authenticate(c.record, ScopeReadings, noon.Add(c.after))
			if c.reason == "" {
				if err != nil {
					t.Fatal(err)
				}
				if caller.Supplier() != tok.Client() || caller.TokenID() != tok.ID() || caller.Thumbprint() != leaf ||
					caller.ExpiresAt() != tok.ExpiresAt() || caller.Scope() != ScopeReadings {
					t.Errorf("%+v", caller)
				}
				return
			}
			kind := c.kind
			if kind == nil {
				kind = ErrInvalidToken
			}
			refused(t, err, kind, c.reason)
			if caller != (Caller{}) {
				t.Errorf("a caller came with the error: %+v", caller)
			}
			if status, _ := Challenge(err); (kind == ErrInsufficientScope) != (status == http.StatusForbidden) {
				t.Errorf("status %d", status)
			}
		})
	}
}

func TestZeroValuesAreNobody(t *testing.T) {
	t.Parallel()
	if !(Caller{}).Supplier().IsZero() {
		t.Error("the zero Caller is somebody")
	}
	_, err := new(Token).Authenticate(nil, ScopeReadings, noon)
	refused(t, err, ErrInvalidToken, "expired")
}

func TestParseScope(t *testing.T) {
	t.Parallel()
	many := "s0"
	for i := range maxScopes {
		many += fmt.Sprintf(" s%d", i+1)
	}
	for _, bad := range []string{"", " ", "a ", " a", "a  b", "a\tb", "a\"", `a\`, "é", "a\x7f", "a a", many} {
		if got, ok := ParseScope(bad); ok {
			t.Errorf("%q read as %q", bad, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfNDistinct(rapid.StringMatching(`[!#-\[\]-~]{1,8}`), 1, maxScopes, rapid.ID).Draw(t, "scopes")
		got, ok := ParseScope(strings.Join(list, " "))
		if !ok || !slices.Equal(got, list) {
			t.Fatalf("%q read as %q", list, got)
		}
	})
}

func FuzzObject(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"a":2}`, `{"a":{"b":[{"c":1}]}}`, `[]`, ` {"a" : null } `, `{"a":1}x`, `{"\ud800":1,"\ud801":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := strictjson.Object(b)
		if err != nil {
			return
		}
		var loose map[string]any
		if err := json.Unmarshal(b, &loose); err != nil || len(loose) != len(m) {
			t.Fatalf("%q: encoding/json reads %d members (%v), object %d", b, len(loose), err, len(m))
		}
		same, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := strictjson.Object(same)
		if err != nil || len(again) != len(m) {
			t.Fatalf("%q: %d members, again %d, %v", b, len(m), len(again), err)
		}
	})
}
