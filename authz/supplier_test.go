package authz

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

func thumbprint(n byte) [32]byte { return [32]byte{31: n} }

func supplierFacts(change ...func(*SupplierFacts)) SupplierFacts {
	f := SupplierFacts{
		GLN:    alpha,
		Name:   "Alpha Energie B.V.",
		Scopes: []string{"readings:read"},
		Certificates: []Certificate{
			{Thumbprint: thumbprint(2), NotAfter: instant("2027-01-01T00:00:00Z")},
			{Thumbprint: thumbprint(1), NotAfter: instant("2026-06-01T00:00:00Z"), RevokedAt: instant("2026-01-02T00:00:00Z")},
		},
	}
	for _, c := range change {
		c(&f)
	}
	return f
}

func supplier(t testing.TB, prev *Supplier, at time.Time, change ...func(*SupplierFacts)) *Supplier {
	t.Helper()
	s, err := NewSupplier(prev, supplierFacts(change...), operator, at)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSupplierGolden(t *testing.T) {
	t.Parallel()
	const want = "0000000e" + "6b6c7569732f737570706c696572" + "01" +
		"000007ec8043c00d" + "0000000000000001" + "000647a11f422800" +
		"0000000000000000000000000000000000000000000000000000000000000000" +
		"01" + "00000009" + "726567697374726172" + // actor
		"00000012" + "416c70686120456e657267696520422e562e" +
		"00000001" + "0000000d" + "72656164696e67733a72656164" +
		"00" + "00000002" +
		"0000000000000000000000000000000000000000000000000000000000000001" + "00065325e029e000" + "0006475c63f7a000" +
		"0000000000000000000000000000000000000000000000000000000000000002" + "000663f6d2342000" + "0000000000000000"
	s := supplier(t, nil, t0)
	if got := hex.EncodeToString(s.Payload()); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if s.GLN() != alpha || s.Name() != "Alpha Energie B.V." || s.Version() != 1 || !s.SealedAt().Equal(t0) || s.Suspended() ||
		!reflect.DeepEqual(s.Scopes(), []string{"readings:read"}) || len(s.Certificates()) != 2 {
		t.Errorf("%+v", s)
	}
	next := supplier(t, s, t0.Add(time.Hour), func(f *SupplierFacts) { f.Suspended = true })
	if next.Version() != 2 || next.previous != s.Digest() || !next.Suspended() {
		t.Errorf("%+v", next)
	}
}

func TestSupplierIsImmutable(t *testing.T) {
	t.Parallel()
	facts := supplierFacts()
	s, err := NewSupplier(nil, facts, operator, t0)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Payload()
	facts.Scopes[0] = "all"
	facts.Certificates[0].Thumbprint[0] = 9
	s.Payload()[0] = 9
	s.Scopes()[0] = "all"
	s.Certificates()[0].RevokedAt = time.Time{}
	if !bytes.Equal(s.encode(), before) || !bytes.Equal(s.Payload(), before) {
		t.Error("a caller changed the record")
	}
}

func TestAccepts(t *testing.T) {
	t.Parallel()
	s := supplier(t, nil, t0)
	suspended := supplier(t, s, t0, func(f *SupplierFacts) { f.Suspended = true })
	for _, c := range []struct {
		name string
		s    *Supplier
		cert byte
		now  string
		want error
	}{
		{"valid", s, 2, "2026-12-31T23:59:59Z", nil},
		{"expired", s, 2, "2027-01-01T00:00:00Z", ErrCertificateExpired},
		{"revoked", s, 1, "2026-01-10T00:00:00Z", ErrCertificateRevoked},
		{"revoked, by a clock that is behind", s, 1, "2026-01-01T00:00:00Z", ErrCertificateRevoked},
		{"unknown", s, 3, "2026-01-10T00:00:00Z", ErrCertificateUnknown},
		{"zero", s, 0, "2026-01-10T00:00:00Z", ErrCertificateUnknown},
		{"suspended", suspended, 2, "2026-01-10T00:00:00Z", ErrSuspended},
	} {
		if err := c.s.Accepts(thumbprint(c.cert), instant(c.now)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// A revocation cannot be undone, in any number of versions.
func TestRevokedStaysRevoked(t *testing.T) {
	t.Parallel()
	first := supplier(t, nil, t0)
	revokedAt := instant("2026-01-02T00:00:00Z")
	check := func(s *Supplier) {
		t.Helper()
		wantErr(t, s.Accepts(thumbprint(1), t0), ErrCertificateRevoked)
		if got := s.Certificates()[0].RevokedAt; !got.Equal(revokedAt) {
			t.Errorf("revoked at %v", got)
		}
	}
	left := supplier(t, first, t0, func(f *SupplierFacts) { f.Certificates = f.Certificates[:1] })
	check(left) // carried over
	check(supplier(t, left, t0, func(f *SupplierFacts) { f.Certificates = nil }))
	check(supplier(t, left, t0, func(f *SupplierFacts) { f.Certificates[1].RevokedAt = t0 })) // keeps its time
	_, err := NewSupplier(left, supplierFacts(func(f *SupplierFacts) { f.Certificates[1].RevokedAt = time.Time{} }), operator, t0)
	wantErr(t, err, ErrSupplier)
	_, err = NewSupplier(left, supplierFacts(func(f *SupplierFacts) {
		f.Certificates[1] = Certificate{Thumbprint: thumbprint(1), NotAfter: instant("2030-01-01T00:00:00Z")}
	}), operator, t0)
	wantErr(t, err, ErrSupplier)

	// Once expired it may go: nobody can call with it any more.
	later := supplier(t, left, instant("2026-06-01T00:00:00Z"), func(f *SupplierFacts) { f.Certificates = f.Certificates[:1] })
	wantErr(t, later.Accepts(thumbprint(1), t0), ErrCertificateUnknown)
	// A clock ahead of ours cannot date a revocation into the future.
	ahead := supplier(t, nil, t0, func(f *SupplierFacts) { f.Certificates[1].RevokedAt = t0.Add(time.Minute) })
	if got := ahead.Certificates()[0].RevokedAt; !got.Equal(t0) {
		t.Errorf("revoked at %v", got)
	}
}

func TestNewSupplierRefuses(t *testing.T) {
	t.Parallel()
	prev := supplier(t, nil, t0)
	for name, change := range map[string]func(*SupplierFacts){
		"no GLN":               func(f *SupplierFacts) { f.GLN = meter.GLN{} },
		"no name":              func(f *SupplierFacts) { f.Name = "" },
		"name of two lines":    func(f *SupplierFacts) { f.Name = "a\nb" },
		"name too long":        func(f *SupplierFacts) { f.Name = strings.Repeat("a", 129) },
		"scope with a space":   func(f *SupplierFacts) { f.Scopes = []string{"a b"} },
		"empty scope":          func(f *SupplierFacts) { f.Scopes = []string{""} },
		"long scope":           func(f *SupplierFacts) { f.Scopes = []string{strings.Repeat("a", 65)} },
		"many scopes":          func(f *SupplierFacts) { f.Scopes = strings.Split("abcdefghijklmnopq", "") },
		"certificate twice":    func(f *SupplierFacts) { f.Certificates[0].Thumbprint = thumbprint(1) },
		"no thumbprint":        func(f *SupplierFacts) { f.Certificates[0].Thumbprint = [32]byte{} },
		"no expiry":            func(f *SupplierFacts) { f.Certificates[0].NotAfter = time.Time{} },
		"too many certs":       func(f *SupplierFacts) { f.Certificates = manyCertificates(65) },
		"another supplier":     func(f *SupplierFacts) { f.GLN = beta },
		"certificate relabels": func(f *SupplierFacts) { f.Certificates[0].NotAfter = instant("2028-01-01T00:00:00Z") },
	} {
		if s, err := NewSupplier(prev, supplierFacts(change), operator, t0); !errors.Is(err, ErrSupplier) || s != nil || errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"no time":      second(NewSupplier(nil, supplierFacts(), operator, time.Time{})),
		"clock behind": second(NewSupplier(prev, supplierFacts(), operator, t0.Add(-maxSkew-time.Second))),
	} {
		if !errors.Is(err, ErrSupplier) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewSupplier(nil, supplierFacts(func(f *SupplierFacts) { f.Certificates = manyCertificates(64) }), operator, t0); err != nil {
		t.Error(err)
	}
}

func manyCertificates(n int) []Certificate {
	out := make([]Certificate, n)
	for i := range out {
		out[i] = Certificate{Thumbprint: thumbprint(byte(i + 1)), NotAfter: instant("2027-01-01T00:00:00Z")}
	}
	return out
}

func TestSupplierInvariants(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(*Supplier){
		"no GLN":                  func(s *Supplier) { s.facts.GLN = meter.GLN{} },
		"version 0":               func(s *Supplier) { s.version = 0 },
		"version 2 out of none":   func(s *Supplier) { s.version = 2 },
		"version 1 out of one":    func(s *Supplier) { s.previous[0] = 1 },
		"no time":                 func(s *Supplier) { s.sealedAt = time.Time{} },
		"no name":                 func(s *Supplier) { s.facts.Name = "" },
		"scopes unsorted":         func(s *Supplier) { s.facts.Scopes = []string{"b", "a"} },
		"scope twice":             func(s *Supplier) { s.facts.Scopes = []string{"a", "a"} },
		"scope that is none":      func(s *Supplier) { s.facts.Scopes = []string{"a\"b"} },
		"many scopes":             func(s *Supplier) { s.facts.Scopes = strings.Split("abcdefghijklmnopq", "") },
		"certificates unsorted":   func(s *Supplier) { c := s.facts.Certificates; c[0], c[1] = c[1], c[0] },
		"certificate twice":       func(s *Supplier) { c := s.facts.Certificates; c[0] = c[1] },
		"too many certificates":   func(s *Supplier) { s.facts.Certificates = manyCertificates(65) },
		"certificate of no print": func(s *Supplier) { s.facts.Certificates[0].Thumbprint = [32]byte{} },
		"certificate of no end":   func(s *Supplier) { s.facts.Certificates[0].NotAfter = time.Time{} },
		"revoked after sealing":   func(s *Supplier) { s.facts.Certificates[0].RevokedAt = t0.Add(time.Second) },
	} {
		s := *supplier(t, nil, t0)
		s.facts.Certificates = s.Certificates()
		break_(&s)
		if _, err := parseSupplier(s.encode()); !errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSupplier(f *testing.F) {
	f.Add(supplier(f, nil, t0).Payload())
	f.Add(supplier(f, supplier(f, nil, t0), t0, func(f *SupplierFacts) { f.Suspended, f.Certificates = true, nil }).Payload())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSupplier(b)
		if err != nil {
			return
		}
		if !bytes.Equal(s.encode(), b) {
			t.Fatalf("re-encodes differently:\n%x\n%x", b, s.encode())
		}
	})
}
