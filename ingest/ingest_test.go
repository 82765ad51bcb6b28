package ingest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/meter"
)

// ledger is a Store in memory that can be made to fail, to see what Days does
// then. The real database and HSM are tested with in cmd/kluis.
type ledger struct {
	mu     sync.Mutex
	files  map[meter.EAN]authz.StoredFile
	keys   []envelope.KeyRecord
	rows   []Row
	commit []error // taken one by one, before the batch is stored
	calls  int
}

func (l *ledger) LegalFiles(_ context.Context, eans []meter.EAN) ([]authz.StoredFile, error) {
	out := make([]authz.StoredFile, len(eans))
	for i, e := range eans {
		out[i] = l.files[e]
	}
	return out, nil
}

func (l *ledger) Heads(_ context.Context, eans []meter.EAN, fields []meter.FieldCode, days meter.DayRange) ([]Head, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	type block struct {
		ean meter.EAN
		fieldDay
	}
	newest := map[block]Head{}
	for _, r := range l.rows {
		k := block{r.EAN, fieldDay{r.Field, r.Day}}
		if slices.Contains(eans, r.EAN) && slices.Contains(fields, r.Field) && days.Contains(r.Day) && r.Version > newest[k].Version {
			newest[k] = Head{r.EAN, r.Field, r.Day, r.Version, r.ValueCount, r.ContentMAC}
		}
	}
	return slices.Collect(maps.Values(newest)), nil
}

func (l *ledger) Keys(_ context.Context, eans []meter.EAN, first, last meter.Month) ([]envelope.KeyRecord, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []envelope.KeyRecord
	for _, k := range l.keys {
		if slices.Contains(eans, k.EAN) && first <= k.Month && k.Month <= last {
			out = append(out, k)
		}
	}
	return out, nil
}

func (l *ledger) Commit(_ context.Context, b Batch) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls++
	if len(l.commit) > 0 {
		err := l.commit[0]
		l.commit = l.commit[1:]
		if err != nil {
			return err
		}
	}
	for _, r := range b.Blocks {
		for _, o := range l.rows {
			if o.EAN == r.EAN && o.Field == r.Field && o.Day == r.Day && o.Version == r.Version {
				return ErrConflict
			}
		}
	}
	l.keys = append(l.keys, b.Keys...)
	l.rows = append(l.rows, b.Blocks...)
	return nil
}

// press is a Sealer that tells contents apart and keeps nothing secret.
type press struct {
	loc    *time.Location
	p      *meter.Profile
	mu     sync.Mutex
	minted int
	calls  int
	err    error
	short  bool // answers with less than was asked for
}

func (s *press) Mint(_ context.Context, specs []envelope.KeySpec) ([]envelope.KeyRecord, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []envelope.KeyRecord
	for _, spec := range specs {
		s.minted++
		k := envelope.KeyRecord{EAN: spec.EAN, Class: spec.Class, Month: spec.Month, Occupancy: spec.Occupancy, Epoch: 1}
		k.ID[0], k.ID[1] = byte(s.minted), byte(s.minted>>8)
		out = append(out, k)
	}
	if s.short {
		out = out[1:]
	}
	return out, nil
}

func (s *press) Seal(_ context.Context, ean meter.EAN, keys []envelope.KeyRecord, blocks []envelope.PlainBlock) ([]envelope.SealedContent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.err != nil {
		return nil, s.err
	}
	var out []envelope.SealedContent
	for _, b := range blocks {
		f, _ := s.p.FieldByCode(b.Field)
		k := keys[b.Key]
		if k.EAN != ean || k.Class != f.Class || k.Month != b.Block.Day.Month() {
			return nil, errors.New("sealed under the wrong key")
		}
		plain, err := meter.AppendBlock(nil, &b.Block, f.Class, s.loc)
		if err != nil {
			return nil, err
		}
		out = append(out, envelope.SealedContent{Ciphertext: plain, ContentMAC: sha256.Sum256(fmt.Appendf(plain, "%d", b.Field))})
	}
	return out, nil
}

type testSigner struct{ *ecdsa.PrivateKey }

func (s testSigner) KeyID() authz.KeyID { return authz.KeyIDOf(&s.PublicKey) }

func (s testSigner) SignDigest(d [32]byte) (sig [64]byte, err error) {
	r, v, err := ecdsa.Sign(rand.Reader, s.PrivateKey, d[:])
	if err != nil {
		return sig, err
	}
	r.FillBytes(sig[:32])
	v.FillBytes(sig[32:])
	return sig, nil
}

type desk struct {
	*Ingester
	signer testSigner
	ledger *ledger
	press  *press
	ean    meter.EAN
	day    meter.Day // the first one occupied
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	p := testProfile(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := authz.NewSealKeys(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{signer: testSigner{key}, ledger: &ledger{files: map[meter.EAN]authz.StoredFile{}}, press: &press{p: p, loc: p.Location()}, day: mustDay(t, "2024-01-20")}
	if d.ean, err = meter.ParseEAN("871687200000000010"); err != nil {
		t.Fatal(err)
	}
	d.register(t, d.ean)
	d.Ingester = New(p, keys, d.press, d.ledger)
	return d
}

// register makes the legal file of a metering point.
func (d *desk) register(t *testing.T, ean meter.EAN) {
	t.Helper()
	var file *authz.LegalFile
	for _, step := range []authz.Step{
		authz.Register{EAN: ean, Commodity: meter.Electricity},
		authz.SetOccupancy{Days: meter.DayRange{From: d.day, To: meter.MaxDay}},
	} {
		var err error
		if file, err = authz.Apply(file, step, authz.Actor{Kind: authz.ByOperator, Name: "test"}, time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), d.press.loc); err != nil {
			t.Fatal(err)
		}
		sealed, err := authz.Seal(file.Payload(), d.signer)
		if err != nil {
			t.Fatal(err)
		}
		d.ledger.files[ean] = authz.StoredFile{Version: file.Version(), Sealed: sealed, Previous: d.ledger.files[ean].Sealed}
	}
}

// registers makes register blocks of consecutive days.
func (d *desk) registers(values ...meter.Value) []Point {
	p := Point{EAN: d.ean}
	for i, v := range values {
		p.Blocks = append(p.Blocks, FieldBlock{1, meter.Block{
			Day: d.day + meter.Day(i), Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{v}, Quality: []meter.Quality{0},
		}})
	}
	return []Point{p}
}

func TestDaysVersions(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	days := func(opt Options, values ...meter.Value) Counts {
		t.Helper()
		c, err := d.Days(t.Context(), d.registers(values...), opt)
		if err != nil {
			t.Fatal(err)
		}
		c[0].Field, c[0].EAN = "", ""
		return c[0]
	}
	want := func(got, want Counts) {
		t.Helper()
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	want(days(Options{}, 1, meter.Null, 3), Counts{Days: 3, Values: 2, Stored: 2, Empty: 1})
	want(days(Options{}, 1, meter.Null, 3), Counts{Days: 3, Values: 2, Unchanged: 2, Empty: 1})
	want(days(Options{}, 1, 2, 4), Counts{Days: 3, Values: 3, Stored: 1, Corrected: 1, Unchanged: 1})
	// A read that is taken back becomes a version of its own, and stays one.
	want(days(Options{Replace: true}, 1, meter.Null, 4), Counts{Days: 3, Values: 2, Corrected: 1, Unchanged: 2})
	want(days(Options{}, 1, meter.Null, 4), Counts{Days: 3, Values: 2, Unchanged: 3})
	if len(d.ledger.rows) != 5 || len(d.ledger.keys) != 1 || d.press.minted != 1 {
		t.Errorf("%d rows, %d keys, %d minted", len(d.ledger.rows), len(d.ledger.keys), d.press.minted)
	}
	// A run that changes nothing does not even write.
	calls := d.ledger.calls
	days(Options{}, 1)
	if d.ledger.calls != calls {
		t.Error("wrote an empty batch")
	}
}

func TestDaysFewer(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	if _, err := d.Days(t.Context(), d.registers(1, 2, 3), Options{}); err != nil {
		t.Fatal(err)
	}
	sealed := d.press.calls
	_, err := d.Days(t.Context(), d.registers(5, meter.Null, meter.Null), Options{})
	var fewer *FewerError
	if !errors.As(err, &fewer) || !errors.Is(err, ErrFewer) || len(fewer.Days) != 2 || fewer.Days[0].Day != d.day+1 ||
		!strings.Contains(err.Error(), "import_low on 2024-01-21 has 0, stored are 1, and 1 more") {
		t.Fatalf("got %v", err)
	}
	if len(d.ledger.rows) != 3 || d.press.calls != sealed {
		t.Error("something was sealed or stored all the same")
	}
}

func TestDaysFaults(t *testing.T) {
	t.Parallel()
	down := errors.New("down")
	for name, c := range map[string]struct {
		arrange func(*desk)
		points  func(*desk) []Point
		want    error  // nil: success
		text    string // in the error
		commits int
	}{
		"another writer was faster":       {arrange: func(d *desk) { d.ledger.commit = []error{ErrConflict, ErrConflict} }, commits: 3},
		"another writer is always faster": {arrange: func(d *desk) { d.ledger.commit = slices.Repeat([]error{ErrConflict}, 99) }, want: ErrConflict, commits: commitTries},
		"database fails":                  {arrange: func(d *desk) { d.ledger.commit = []error{down} }, want: down, commits: 1},
		"sealing fails":                   {arrange: func(d *desk) { d.press.err = down }, want: down},
		"too few keys":                    {arrange: func(d *desk) { d.press.short = true }, text: "data keys instead of"},
		"unknown metering point":          {arrange: func(d *desk) { clear(d.ledger.files) }, want: ErrUnknownMeteringPoint},
		"legal file kept back, and stored on top of others": {arrange: func(d *desk) {
			f := d.ledger.files[d.ean]
			f.Previous = f.Sealed
			d.ledger.files[d.ean] = f
		}, want: authz.ErrSeal},
		"legal file altered": {arrange: func(d *desk) { d.ledger.files[d.ean].Sealed[60] ^= 1 }, want: authz.ErrSeal},
		"legal file of another point": {points: func(d *desk) []Point {
			p := d.registers(1)
			p[0].EAN, _ = meter.ParseEAN("871687200000000027")
			d.ledger.files[p[0].EAN] = d.ledger.files[d.ean]
			return p
		}, want: authz.ErrSeal},
		"gas at an electricity point":   {points: func(d *desk) []Point { p := d.registers(1); p[0].Blocks[0].Field = 5; return p }, want: ErrCommodity},
		"unknown field":                 {points: func(d *desk) []Point { p := d.registers(1); p[0].Blocks[0].Field = 999; return p }, text: "not in the market's catalogue"},
		"resolution that is not stored": {points: func(d *desk) []Point { p := d.registers(1); p[0].Blocks[0].Block.Resolution = meter.PT1H; return p }, text: "cannot be stored at PT1H"},
		"a day twice":                   {points: func(d *desk) []Point { p := d.registers(1, 2); p[0].Blocks[1].Block.Day--; return p }, text: "given twice"},
		"a metering point twice":        {points: func(d *desk) []Point { return append(d.registers(1), d.registers(2)...) }, text: "given twice"},
		"nothing to do":                 {points: func(d *desk) []Point { return []Point{{EAN: d.ean}} }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDesk(t)
			points := d.registers(1, 2)
			if c.arrange != nil {
				c.arrange(d)
			}
			if c.points != nil {
				points = c.points(d)
			}
			_, err := d.Days(t.Context(), points, Options{})
			switch {
			case c.want == nil && c.text == "":
				if err != nil {
					t.Fatal(err)
				}
			case err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text):
				t.Fatalf("got %v", err)
			case len(d.ledger.rows) != 0 || len(d.ledger.keys) != 0:
				t.Error("something was stored")
			}
			if d.ledger.calls != c.commits {
				t.Errorf("%d commits, want %d", d.ledger.calls, c.commits)
			}
		})
	}
}

// A long history takes several calls and a key for each month; progress ends
// at the total.
func TestDaysBatches(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	values := make([]meter.Value, 3*sealBatch+10)
	for i := range values {
		values[i] = meter.Value(i)
	}
	var last, total int
	c, err := d.Days(t.Context(), d.registers(values...), Options{Progress: func(done, of int) { last, total = done, of }})
	if err != nil || c[0].Stored != len(values) {
		t.Fatalf("%+v, %v", c, err)
	}
	months := int((d.day+meter.Day(len(values)-1)).Month()-d.day.Month()) + 1
	if d.press.calls != 4 || last != len(values) || total != len(values) || len(d.ledger.keys) != months {
		t.Errorf("%d calls, progress %d of %d, %d keys for %d months", d.press.calls, last, total, len(d.ledger.keys), months)
	}
	for _, k := range d.ledger.keys {
		if k.Occupancy != d.day {
			t.Errorf("key of the occupancy of %s", k.Occupancy)
		}
	}
}

func TestLimitsOfAFile(t *testing.T) {
	t.Parallel()
	m := mapping(t, wide)
	_, err := read(t, m, "Start,A,B\n"+strings.Repeat("nonsense,1,1\n", maxBad+1), ReadOptions{SkipBad: true})
	if !errors.Is(err, ErrFile) || !strings.Contains(err.Error(), "right mapping") {
		t.Errorf("bad lines without end: %v", err)
	}
	b := &bounded{r: strings.NewReader("12345"), left: 3}
	buf := make([]byte, 8)
	if n, err := b.Read(buf); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := b.Read(buf); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("bound: %v", err)
	}
}
