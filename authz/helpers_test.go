package authz

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
	"time"
	_ "time/tzdata"

	"kluis/meter"
)

// day reads YYYY-MM-DD; "" is no end.
func day(s string) meter.Day {
	if s == "" {
		return meter.MaxDay
	}
	d, err := meter.ParseDay(s)
	if err != nil {
		panic(err)
	}
	return d
}

func days(from, to string) meter.DayRange { return meter.DayRange{From: day(from), To: day(to)} }

func instant(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		panic(err)
	}
	return t.UTC()
}

var amsterdam = func() *time.Location {
	loc, err := time.LoadLocation("Europe/Amsterdam")
	if err != nil {
		panic(err)
	}
	return loc
}()

// withCheckDigit appends the GS1 check digit.
func withCheckDigit(digits string) string {
	sum := 0
	for i := range digits {
		w := 1
		if (len(digits)-i)%2 == 1 {
			w = 3
		}
		sum += w * int(digits[i]-'0')
	}
	return fmt.Sprintf("%s%d", digits, (10-sum%10)%10)
}

func testEAN(n int) meter.EAN {
	e, err := meter.ParseEAN(withCheckDigit(fmt.Sprintf("871685900%08d", n)))
	if err != nil {
		panic(err)
	}
	return e
}

func testGLN(n int) meter.GLN {
	g, err := meter.ParseGLN(withCheckDigit(fmt.Sprintf("87123456%04d", n)))
	if err != nil {
		panic(err)
	}
	return g
}

var (
	home  = testEAN(1)
	alpha = testGLN(1) // suppliers
	beta  = testGLN(2)
	gamma = testGLN(3)
)

type caller meter.GLN

func (c caller) Supplier() meter.GLN { return meter.GLN(c) }
func (c caller) Employee() *Employee { return nil }

func uuid(n byte) [16]byte { return [16]byte{15: n} }

var operator = Actor{ByOperator, "registrar"}

// by is what the operator did at a time.
func by(at time.Time) ConsentEvent { return ConsentEvent{at, operator} }

// as is a step that somebody else takes than the operator.
type as struct {
	Step
	by Actor
}

func bySupplier(g meter.GLN) Actor { return Actor{BySupplier, g.String()} }

var byEmployee = Actor{ByCustomer, "employee-7"}

// history applies steps, each a minute after the one before, the first at t0.
func history(t testing.TB, t0 time.Time, steps ...Step) *LegalFile {
	t.Helper()
	var f *LegalFile
	for i, s := range steps {
		var err error
		who := operator
		if a, ok := s.(as); ok {
			s, who = a.Step, a.by
		}
		if f, err = Apply(f, s, who, t0.Add(time.Duration(i)*time.Minute), amsterdam); err != nil {
			t.Fatalf("step %d (%T): %v", i, s, err)
		}
	}
	return f
}

// softSigner stands for the HSM's seal key.
type softSigner struct {
	key *ecdsa.PrivateKey
	err error
}

func newSigner(t testing.TB) softSigner {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return softSigner{key: key}
}

func (s softSigner) KeyID() KeyID { return KeyIDOf(&s.key.PublicKey) }

func (s softSigner) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	if s.err != nil {
		return sig, s.err
	}
	r, ss, err := ecdsa.Sign(rand.Reader, s.key, digest[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	ss.FillBytes(sig[32:])
	return sig, nil
}

func wantErr(t *testing.T, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("error %v, want %v", got, want)
	}
}

// request is beta's, for intervals by the hour.
func request(id byte, change ...func(*RequestConsent)) RequestConsent {
	r := RequestConsent{
		ID: uuid(id), Supplier: beta, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
		Granularity: meter.PT1H, Days: days("2025-07-01", ""),
		ValidUntil: instant("2027-01-01T00:00:00Z"), Evidence: "contract/2026-3",
	}
	for _, c := range change {
		c(&r)
	}
	return r
}
