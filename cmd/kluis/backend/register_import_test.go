package backend

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/client"
	"kluis/internal/postgres"
	"kluis/meter"
)

// office is a store and a sealer in memory, which fail when they are told to.
// The seals are real.
type office struct {
	key     *ecdsa.PrivateKey
	keys    *authz.SealKeys
	profile *meter.Profile

	mu     sync.Mutex
	files  map[meter.EAN][][]byte
	seals  int
	stores int
	known  map[meter.GLN][]byte
	// onSeal and onStore are called under the lock, with how often that was done
	// before; an error is what comes of it.
	onSeal, onStore func(n int) error
}

func newOffice(t testing.TB) *office {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	o := &office{key: key, files: map[meter.EAN][][]byte{}, known: map[meter.GLN][]byte{}}
	if o.keys, err = authz.NewSealKeys(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	if o.profile, err = meter.ParseProfile(meter.NL()); err != nil {
		t.Fatal(err)
	}
	for _, g := range []string{alpha, beta} {
		s, err := authz.NewSupplier(nil, authz.SupplierFacts{GLN: gln(g), Name: "supplier"}, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, someTime)
		if err != nil {
			t.Fatal(err)
		}
		if o.known[gln(g)], err = authz.Seal(s.Payload(), o); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func (o *office) registrar() *Registrar { return newRegistrar(o.profile, o.keys, o, o) }

// KeyID and SignDigest make it an authz.Signer.
func (o *office) KeyID() authz.KeyID { return authz.KeyIDOf(&o.key.PublicKey) }

func (o *office) SignDigest(digest [32]byte) (sig [64]byte, err error) {
	r, s, err := ecdsa.Sign(rand.Reader, o.key, digest[:])
	if err == nil {
		r.FillBytes(sig[:32])
		s.FillBytes(sig[32:])
	}
	return sig, err
}

func (o *office) SealStep(_ context.Context, previous []byte, step authz.Step) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seals++
	if o.onSeal != nil {
		if err := o.onSeal(o.seals - 1); err != nil {
			return nil, err
		}
	}
	var before *authz.LegalFile
	if previous != nil {
		var err error
		if before, err = o.keys.LegalFile(previous); err != nil {
			return nil, err
		}
	}
	f, err := authz.Apply(before, step, authz.Actor{Kind: authz.ByOperator, Name: "test"}, time.Now(), loc)
	if err != nil {
		return nil, err
	}
	return authz.Seal(f.Payload(), o)
}

func (o *office) SealSupplier(context.Context, []byte, authz.SupplierFacts) ([]byte, error) {
	return nil, errors.New("not asked for")
}

func (o *office) Supplier(_ context.Context, g meter.GLN) ([]byte, error) { return o.known[g], nil }

func (o *office) StoreSupplier(context.Context, *authz.Supplier, []byte) error {
	return errors.New("not asked for")
}

func (o *office) LegalFile(_ context.Context, ean meter.EAN) (authz.StoredFile, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := len(o.files[ean])
	if n == 0 {
		return authz.StoredFile{}, nil
	}
	f := authz.StoredFile{Version: uint64(n), Sealed: o.files[ean][n-1]}
	if n > 1 {
		f.Previous = o.files[ean][n-2]
	}
	return f, nil
}

func (o *office) StoreLegalFile(ctx context.Context, f *authz.LegalFile, sealed []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	o.stores++
	if o.onStore != nil {
		if err := o.onStore(o.stores - 1); err != nil {
			return err
		}
	}
	if uint64(len(o.files[f.EAN()]))+1 != f.Version() {
		return postgres.ErrConflict
	}
	o.files[f.EAN()] = append(o.files[f.EAN()], sealed)
	return nil
}

// says is what all legal files say, for comparing.
func (o *office) says(t *testing.T) string {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []string
	for n := range 200 {
		versions := o.files[nthEAN(n)]
		if len(versions) == 0 {
			continue
		}
		f, err := o.keys.LegalFile(versions[len(versions)-1])
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprint(n, f.Commodity(), f.Occupancies(), f.SupplyPeriods()))
	}
	return strings.Join(out, "\n")
}

// nthEAN are metering points in ascending order.
func nthEAN(n int) meter.EAN {
	digits := fmt.Sprintf("8716872%010d", n)
	sum := 0
	for i := range digits {
		d := int(digits[len(digits)-1-i] - '0')
		if i%2 == 0 {
			d *= 3
		}
		sum += d
	}
	e, err := meter.ParseEAN(fmt.Sprintf("%s%d", digits, (10-sum%10)%10))
	if err != nil {
		panic(err)
	}
	return e
}

// extract has n metering points, each with a move and a switch: two rows, and
// five steps.
func extract(n int) string {
	var b strings.Builder
	b.WriteString(heading)
	for i := range n {
		e := nthEAN(i)
		fmt.Fprintf(&b, "%s,electricity,%s,2024-01-01,2025-03-01,2023-01-01,2025-03-01\n%s,,%s,2025-03-01,,2025-03-01,\n", e, alpha, e, beta)
	}
	return b.String()
}

func TestImportRegister(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	const n = 50
	bytes := int64(0)
	report, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{DryRun: true, Progress: func(_ RegisterReport, b int64) { bytes = b }})
	want := RegisterReport{Rows: 2 * n, MeteringPoints: n, New: n, Steps: 5 * n}
	same := func(a, b RegisterReport) bool { a.Bad, b.Bad = nil, nil; return fmt.Sprint(a) == fmt.Sprint(b) }
	if err != nil || !same(report, want) || o.seals+o.stores > 0 || bytes != int64(len(extract(n))) {
		t.Fatalf("dry run: %v, %+v, %d seals, %d stores, %d bytes", err, report, o.seals, o.stores, bytes)
	}
	if report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{}); err != nil || !same(report, want) || o.stores != 5*n {
		t.Fatalf("%v, %+v", err, report)
	}
	before := o.says(t)
	want = RegisterReport{Rows: 2 * n, MeteringPoints: n, Unchanged: n}
	for _, opt := range []RegisterOptions{{}, {SkipBad: true}, {Correct: true}, {DryRun: true}} {
		if report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), opt); err != nil || !same(report, want) || o.stores != 5*n || o.says(t) != before {
			t.Errorf("again: %v, %+v", err, report)
		}
	}

	// What the register says now, and did not say then.
	corrected := strings.ReplaceAll(extract(n), "2025-03-01", "2025-02-01")
	report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(corrected), RegisterOptions{})
	var rows *RowsError
	if !errors.As(err, &rows) || !errors.Is(err, ErrRegister) || report.Steps != 0 || o.says(t) != before || !strings.Contains(err.Error(), "--correct") {
		t.Errorf("%v, %+v", err, report)
	}
	want = RegisterReport{Rows: 2 * n, MeteringPoints: n, LeftOut: n, BadRows: report.BadRows / report.LeftOut * n}
	if report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(corrected), RegisterOptions{SkipBad: true}); err != nil || !same(report, want) || o.says(t) != before || len(report.Bad) != report.BadRows {
		t.Errorf("%v, %+v", err, report)
	}
	want = RegisterReport{Rows: 2 * n, MeteringPoints: n, Changed: n, Steps: 2 * n, Corrections: 2 * n}
	if report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(corrected), RegisterOptions{Correct: true}); err != nil || !same(report, want) {
		t.Errorf("%v, %+v", err, report)
	}
	if got := o.says(t); got != strings.ReplaceAll(before, fmt.Sprint(day("2025-03-01")), fmt.Sprint(day("2025-02-01"))) {
		t.Errorf("%s", got)
	}
}

// TestImportRegisterBadRows: a bad row takes its metering point with it, and
// nothing else.
func TestImportRegisterBadRows(t *testing.T) {
	t.Parallel()
	stranger := "8712000000035"
	for name, c := range map[string]struct{ from, to, want string }{
		"unknown supplier": {beta, stranger, "(supplier): the supplier is not registered: register it first with kluis supplier add"},
		"reversed":         {"2024-01-01,2025-03-01,2023", "2025-04-01,2025-03-01,2023", "(supply_to): the supply period ends before it begins"},
		"overlap":          {beta + ",2025-03-01", beta + ",2025-02-01", "(supply_from): overlaps the supply period of line"},
		"commodity":        {",electricity,", ",heat,", "(commodity): must be electricity or gas"},
		"new":              {",electricity,", ",,", "(commodity): the metering point is new"},
	} {
		const n = 30
		lines := strings.SplitAfter(extract(n), "\n")
		for i := range lines { // the tenth metering point's
			if i == 21 || i == 22 {
				lines[i] = strings.ReplaceAll(lines[i], c.from, c.to)
			}
		}
		text := strings.Join(lines, "")
		o := newOffice(t)
		report, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(text), RegisterOptions{SkipBad: true})
		if err != nil || report.LeftOut != 1 || report.New != n-1 || len(report.Bad) != 1 || !strings.Contains(report.Bad[0].String(), c.want) || report.Bad[0].Line != 22 && report.Bad[0].Line != 23 {
			t.Errorf("%s: %v, %+v", name, err, report)
		}
		if len(o.files[nthEAN(10)]) != 0 {
			t.Errorf("%s: something of it was stored", name)
		}
		o = newOffice(t)
		report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(text), RegisterOptions{})
		var rows *RowsError
		if !errors.As(err, &rows) || !strings.Contains(err.Error(), c.want) || len(o.files[nthEAN(10)]) != 0 || report.New >= n-1 {
			t.Errorf("%s: %v, %+v", name, err, report)
		}
		for e, versions := range o.files { // what is there is whole
			if len(versions) != 5 {
				t.Errorf("%s: %d versions of %s", name, len(versions), e)
			}
		}
	}
	// More problems than are listed are counted.
	o := newOffice(t)
	report, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(strings.ReplaceAll(extract(2000), ",electricity,", ",heat,")), RegisterOptions{SkipBad: true})
	if err != nil || report.BadRows != 2000 || len(report.Bad) != maxListed || report.LeftOut != 2000 {
		t.Errorf("%v, %d, %d", err, report.BadRows, len(report.Bad))
	}
	// What is wrong with the file as a whole ends it, whatever the flags.
	for _, text := range []string{heading, heading + nthEAN(2).String() + ",,,,,2024-01-01,\n" + nthEAN(1).String() + ",,,,,2024-01-01,\n"} {
		if _, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(text), RegisterOptions{SkipBad: true}); !errors.Is(err, ErrRegister) {
			t.Errorf("%v", err)
		}
	}
}

// TestImportRegisterFaults: whatever fails, and however often, the import run
// again ends as if nothing had; and a metering point of which a step cannot be
// sealed has none stored.
func TestImportRegisterFaults(t *testing.T) {
	t.Parallel()
	const n = 8
	whole := newOffice(t)
	if _, err := whole.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{}); err != nil {
		t.Fatal(err)
	}
	want := whole.says(t)
	for at := range 5 * n {
		for name, set := range map[string]func(o *office, f func(int) error){
			"seal":  func(o *office, f func(int) error) { o.onSeal = f },
			"store": func(o *office, f func(int) error) { o.onStore = f },
		} {
			o := newOffice(t)
			set(o, func(n int) error {
				if n == at {
					return client.ErrUnavailable
				}
				return nil
			})
			report, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{SkipBad: true})
			if !errors.Is(err, client.ErrUnavailable) || errors.Is(err, ErrRegister) || !strings.Contains(err.Error(), "metering point of line") || report.New > n-1 {
				t.Fatalf("%s %d: %v, %+v", name, at, err, report)
			}
			for e, versions := range o.files {
				if name == "seal" && len(versions) != 5 {
					t.Errorf("seal %d: %d versions of %s", at, len(versions), e)
				}
			}
			if report, err = o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{}); err != nil || report.MeteringPoints != n {
				t.Errorf("%s %d, again: %v, %+v", name, at, err, report)
			}
			if got := o.says(t); got != want {
				t.Errorf("%s %d: %s\nwant %s", name, at, got, want)
			}
		}
	}
	// Another writer is faster: planned again.
	o := newOffice(t)
	raced := false
	o.onStore = func(n int) error {
		if n == 3 && !raced {
			raced = true
			return postgres.ErrConflict
		}
		return nil
	}
	if _, err := o.registrar().ImportRegister(t.Context(), strings.NewReader(extract(n)), RegisterOptions{}); err != nil || o.says(t) != want {
		t.Errorf("%v: %s", err, o.says(t))
	}
	// Interrupted: what is under way is finished, and nothing else begun.
	o = newOffice(t)
	ctx, cancel := context.WithCancel(t.Context())
	o.onStore = func(int) error { cancel(); return nil }
	if _, err := o.registrar().ImportRegister(ctx, strings.NewReader(extract(200)), RegisterOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if got := len(o.files); got == 0 || got > 2*registerWorkers+1 {
		t.Errorf("%d metering points", got)
	}
	for e, versions := range o.files {
		if len(versions) != 5 {
			t.Errorf("%d versions of %s", len(versions), e)
		}
	}
}

// rowsOf writes an extract without end, of the same legal facts.
type rowsOf struct {
	n, next int
	rest    string
}

func (r *rowsOf) Read(p []byte) (int, error) {
	if r.rest == "" {
		if r.next == r.n {
			return 0, io.EOF
		}
		if r.next == 0 {
			r.rest = heading
		}
		r.rest += nthEAN(r.next).String() + ",electricity," + alpha + ",2024-01-01,,,\n"
		r.next++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// TestImportRegisterMemory: what is held does not grow with the extract.
func TestImportRegisterMemory(t *testing.T) {
	o := newOffice(t)
	used := func(n int) (most uint64) {
		seen := 0
		_, err := o.registrar().ImportRegister(t.Context(), &rowsOf{n: n}, RegisterOptions{DryRun: true, Progress: func(RegisterReport, int64) {
			if seen++; seen%2000 == 0 {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		return most
	}
	small, large := used(4_000), used(40_000)
	if large > small+1<<20 {
		t.Errorf("%d bytes for ten times the rows, %d before", large, small)
	}
}
