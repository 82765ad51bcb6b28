package main

import (
	"cmp"
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/internal/testing/long"
	"kluis/meter"
	"kluis/openapi"
)

// poller follows the feed of one supplier.
type poller struct {
	w      *world
	s      *supplier
	cursor string
}

// follow starts a feed with what comes from now on.
func (w *world) follow(s *supplier) *poller {
	w.t.Helper()
	p := &poller{w: w, s: s}
	w.quiet() // or what was stored before would be told
	if c := p.ask(nil); len(c.Changes) != 0 || c.More {
		w.t.Errorf("before anything came: %+v", c)
	}
	return p
}

// since starts one at a time, with all that is told at once.
func (w *world) since(s *supplier, at time.Time) (*poller, []openapi.Change) {
	w.t.Helper()
	p := &poller{w: w, s: s}
	c := p.ask(url.Values{"since": {at.UTC().Format(time.RFC3339)}, "limit": {"1000"}})
	out := c.Changes
	for c.More {
		c = p.next(1000)
		out = append(out, c.Changes...)
	}
	return p, out
}

func (p *poller) ask(q url.Values) openapi.Changes {
	p.w.t.Helper()
	r := p.w.get(p.s, "/v1/changes?"+q.Encode())
	if r.status != 200 {
		p.w.t.Fatalf("status %d: %s", r.status, r.body)
	}
	var c openapi.Changes
	holdsTo(p.w.t, "Changes", r.body, &c)
	p.cursor = c.Cursor
	return c
}

func (p *poller) next(limit int) openapi.Changes {
	p.w.t.Helper()
	return p.ask(url.Values{"cursor": {p.cursor}, "limit": {fmt.Sprint(limit)}})
}

// story is what is told, as lines.
func story(changes []openapi.Change) []string {
	var out []string
	for _, c := range changes {
		s := string(c.Kind) + " " + c.Ean
		if c.Fields != nil {
			s += " " + strings.Join(*c.Fields, ",") + " " + c.From.String() + " " + c.To.String()
		}
		if c.LegalBases != nil {
			s += " " + fmt.Sprint(*c.LegalBases)
		}
		out = append(out, s)
	}
	return out
}

// quiet waits until all that was stored by now may be told: until the transactions
// under way now, other tests' in the same cluster among them, have ended.
func (w *world) quiet() {
	w.t.Helper()
	var now int64
	if err := w.owner().QueryRowContext(w.t.Context(), `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`).Scan(&now); err != nil {
		w.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var oldest int64
		if err := w.owner().QueryRowContext(w.t.Context(), `SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).Scan(&oldest); err != nil {
			w.t.Fatal(err)
		}
		if oldest >= now {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatal("a transaction does not end")
		}
	}
}

// settled waits until all that is stored now can be told, and says what is. The
// other databases of the cluster have transactions too, and the feed waits for
// them.
func (p *poller) settled() []openapi.Change {
	p.w.t.Helper()
	p.w.quiet()
	var out []openapi.Change
	for {
		c := p.next(100)
		if out = append(out, c.Changes...); !c.More {
			return out
		}
	}
}

func same(t testing.TB, what string, got []openapi.Change, want ...string) {
	t.Helper()
	lines := story(got)
	if !slices.Equal(lines, want) {
		t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// correct stores another value of a register.
func (w *world) correct(e meter.EAN, field meter.FieldCode, d meter.Day, v meter.Value) {
	w.t.Helper()
	ctx := w.t.Context()
	heads, err := w.ingest.Heads(ctx, []meter.EAN{e}, []meter.FieldCode{field}, meter.DayRange{From: d, To: d + 1})
	if err != nil || len(heads) != 1 {
		w.t.Fatalf("%d heads, %v", len(heads), err)
	}
	keys, err := w.ingest.Keys(ctx, []meter.EAN{e}, d.Month(), d.Month())
	if err != nil {
		w.t.Fatal(err)
	}
	at := slices.IndexFunc(keys, func(k envelope.KeyRecord) bool { return k.ID == heads[0].KeyID })
	b := envelope.PlainBlock{Field: field, Version: heads[0].Version + 1, Key: at,
		Block: meter.Block{Day: d, Resolution: meter.P1D, Start: meter.Null, Values: []meter.Value{v}, Quality: make([]meter.Quality, 1)}}
	sealed, err := w.pool.ingest.Seal(ctx, e, keys, []envelope.PlainBlock{b})
	if err != nil {
		w.t.Fatal(err)
	}
	row := postgres.Row{EAN: e, Field: field, Day: d, Version: b.Version, Resolution: meter.P1D, KeyID: heads[0].KeyID, ValueCount: 1,
		ContentMAC: sealed[0].ContentMAC, Ciphertext: sealed[0].Ciphertext}
	if err := w.ingest.Commit(ctx, postgres.Batch{Blocks: []postgres.Row{row}}); err != nil {
		w.t.Fatal(err)
	}
}

const registers = "import_low,import_normal,export_low,export_normal"

// TestChanges: a supplier is told what arrived and was corrected of its own
// metering points, of what it may read; and what was superseded can be read as
// of a moment before.
func TestChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, other := w.customer(1, w.a), w.customer(2, w.b)
	a, b := w.follow(w.a), w.follow(w.b)
	same(t, "nothing", a.settled())
	before := len(w.records())
	w.fill(e)
	w.fill(other)
	days := w.days()
	whole := " " + days.From.String() + " " + (days.To + 1).String()
	got := a.settled()
	same(t, "what arrived, without consent", got, "ARRIVED "+e.String()+" "+registers+whole)
	same(t, "and of the other", b.settled(), "ARRIVED "+other.String()+" "+registers+whole)
	same(t, "nothing is told twice", a.settled())

	for _, rec := range w.records()[before:] {
		if rec.Operation != audit.Changes || rec.Outcome != audit.Given || !rec.EAN.IsZero() || rec.Supplier != w.a.gln && rec.Supplier != w.b.gln {
			t.Errorf("%+v", rec)
		}
	}

	low, d := w.field("import_low"), days.From+9
	w.correct(e, low, d, 4711)
	got = a.settled()
	same(t, "a correction", got, "CORRECTED "+e.String()+" import_low "+d.String()+" "+(d+1).String())
	same(t, "the other", b.settled())

	value := func(asOf time.Time) (string, *time.Time) {
		q := []string{"from", d.String(), "to", (d + 1).String(), "fields", "import_low"}
		if !asOf.IsZero() {
			q = append(q, "asOf", asOf.Format(time.RFC3339Nano))
		}
		r := w.answerOf(w.get(w.a, w.path(e, q...)))
		if len(r.Series) != 1 || len(r.Series[0].Days) == 0 || r.Series[0].Days[0].Values[0] == nil {
			return "none", r.AsOf
		}
		return *r.Series[0].Days[0].Values[0], r.AsOf
	}
	at := got[0].At
	if v, asOf := value(time.Time{}); v != text(4711) || asOf != nil {
		t.Errorf("now %s, as of %v", v, asOf)
	}
	for when, want := range map[time.Time]string{at: text(4711), at.Add(-time.Microsecond): text(read(low, d)), at.Add(-24 * time.Hour): "none"} {
		if v, asOf := value(when); v != want || asOf == nil || !asOf.Equal(when) {
			t.Errorf("as of %v: %s, want %s; says %v", when, v, want, asOf)
		}
		if rec := w.lastRecord(); !rec.AsOf.Equal(when) {
			t.Errorf("recorded as of %v", rec.AsOf)
		}
	}
	if r := w.get(w.a, w.path(e, "asOf", time.Now().Add(time.Hour).UTC().Format(time.RFC3339))); r.status != 400 || !strings.Contains(string(r.body), "/query/asOf") {
		t.Errorf("%d %s", r.status, r.body)
	}
	// What is decided is today's, whenever the readings are from.
	if r := w.get(w.b, w.path(e, "asOf", at.Format(time.RFC3339Nano))); r.problem(t) != "metering-point-not-found" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestChangesOfBases: only what changed the caller's own bases is told; what
// arrived between is told by what may be read when the caller asks.
func TestChangesOfBases(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e := w.customer(1, w.a)
	a, b := w.follow(w.a), w.follow(w.b)
	ofA, ofB := w.consent(w.a), w.consent(w.b)
	ofB.ID = [16]byte{2}

	w.legalFile(e, meter.Electricity, ofA)
	same(t, "a consent", a.settled(), "BASES "+e.String()+" [SUPPLY_PERIODIC SUPPLY_DAILY CONSENT]")
	same(t, "to the other", b.settled())
	// Revoked between: what was granted and arrived meanwhile is not told.
	w.fill(e)
	w.legalFile(e, meter.Electricity, authz.RevokeConsent{ID: ofA.ID})
	for _, c := range a.settled() {
		if c.Fields != nil && slices.Contains(*c.Fields, "import_intervals") {
			t.Errorf("told what was revoked: %+v", c)
		}
	}
	// Another supplier's consent, and its end, are none of a's business.
	w.legalFile(e, meter.Electricity, ofB, authz.RevokeConsent{ID: ofB.ID})
	same(t, "another's consent", a.settled())
	same(t, "that gives nothing without supply", b.settled())
	// A switch is told to both.
	today := meter.DayOf(time.Now(), w.profile.Location())
	w.legalFile(e, meter.Electricity, authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: today, To: meter.MaxDay}})
	same(t, "the old supplier", a.settled(), "BASES "+e.String()+" [SUPPLY_PERIODIC SUPPLY_DAILY SWITCH]")
	got := story(b.settled())
	if len(got) != 1 || !strings.Contains(got[0], "SWITCH") {
		t.Errorf("the new supplier: %q", got)
	}
	// Who is removed from the file is in no index any more, and is told so.
	w.legalFile(e, meter.Electricity, authz.CorrectSupply{Supplier: w.a.gln, Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}})
	got = story(b.settled())
	if len(got) != 1 || !strings.HasSuffix(got[0], "[]") {
		t.Errorf("corrected away: %q", got)
	}
	w.fill(w.customer(2, w.a))
	if got := b.settled(); len(got) != 0 {
		t.Errorf("what is none of its own: %q", story(got))
	}
}

// TestChangesByCalendar: what begins or ends by the calendar alone is told
// without anything being stored.
func TestChangesByCalendar(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{now: func() time.Time { return time.Now().Add(2 * time.Minute) }})
	loc := w.profile.Location()
	today := meter.DayOf(time.Now().Add(time.Minute), loc)
	e := w.ean(1)
	w.legalFile(e, meter.Electricity,
		authz.SetOccupancy{Days: meter.DayRange{From: day("2020-01-01"), To: meter.MaxDay}},
		authz.SetSupply{Supplier: w.b.gln, Days: meter.DayRange{From: day("2020-01-01"), To: today}},
		authz.SetSupply{Supplier: w.a.gln, Days: meter.DayRange{From: today, To: meter.MaxDay}})
	p, told := w.since(w.a, time.Now().Add(-49*time.Hour))
	if len(told) == 0 || told[0].Kind != openapi.BASES || told[0].Ean != e.String() || !told[0].At.Equal(today.Start(loc)) {
		t.Fatalf("%q", story(told))
	}
	same(t, "once", slices.DeleteFunc(p.settled(), func(c openapi.Change) bool { return !c.At.Equal(today.Start(loc)) }))

	// A consent that expires, with nothing else.
	k := w.consent(w.a)
	k.ValidUntil = time.Now().Add(3 * time.Second).Truncate(time.Second)
	w.legalFile(e, meter.Electricity, k)
	// The gateway's clock is ahead, and the consent has expired by it already;
	// the calendar tells so.
	var got []openapi.Change
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got = append(got, p.settled()...)
		if slices.ContainsFunc(got, func(c openapi.Change) bool { return c.Kind == openapi.BASES && c.At.Equal(k.ValidUntil) }) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%q", story(got))
		}
	}
	if last := story(got)[len(got)-1]; strings.Contains(last, "CONSENT") {
		t.Errorf("%s", last)
	}
	same(t, "that, once", p.settled())
}

// TestChangesParameters: times and cursors that are no good.
func TestChangesParameters(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	w.customer(1, w.a)
	for i := range 12 {
		w.customer(10+i, w.a)
	}
	a, b := w.follow(w.a), w.follow(w.b)
	now := time.Now().UTC()
	list := w.get(w.a, "/v1/metering-points?limit=10")
	var page openapi.MeteringPoints
	holdsTo(t, "MeteringPoints", list.body, &page)
	next := must(url.Parse(*page.Links.Next)).Query().Get("cursor")
	flipped := []byte(a.cursor)
	flipped[30] ^= 1
	before := len(w.records())
	for name, c := range map[string]struct{ query, pointer string }{
		"of the future":   {"since=" + now.Add(time.Hour).Format(time.RFC3339), "/query/since"},
		"too long ago":    {"since=" + now.Add(-90*24*time.Hour-time.Minute).Format(time.RFC3339), "/query/since"},
		"no time":         {"since=yesterday", "/query/since"},
		"both":            {"since=" + now.Add(-time.Hour).Format(time.RFC3339) + "&cursor=" + a.cursor, "/query/since"},
		"made up":         {"cursor=AQwY2tXe-egT", "/query/cursor"},
		"flipped":         {"cursor=" + string(flipped), "/query/cursor"},
		"another's":       {"cursor=" + b.cursor, "/query/cursor"},
		"of a list":       {"cursor=" + next, "/query/cursor"},
		"limit":           {"limit=9", "/query/limit"},
		"no such":         {"until=now", "/query"},
		"a cursor, twice": {"cursor=" + a.cursor + "&cursor=" + a.cursor, "/query/cursor"},
	} {
		r := w.get(w.a, "/v1/changes?"+c.query)
		if r.problem(t) != "invalid-parameters" || !strings.Contains(string(r.body), `"`+c.pointer+`"`) {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		for _, sent := range []string{a.cursor, b.cursor, "yesterday"} {
			if strings.Contains(string(r.body), sent) {
				t.Errorf("%s repeats what was sent", name)
			}
		}
	}
	if n := len(w.records()); n != before {
		t.Errorf("%d records of requests that were refused before", n-before)
	}
	// A database that was put back: the cursor is of transactions that are still
	// to come there. Another world's, under the same keys of the gateways.
	if r := w.get(w.a, "/v1/changes?since="+now.Add(-90*24*time.Hour+time.Minute).Format(time.RFC3339)); r.status != 200 {
		t.Errorf("90 days: %d %s", r.status, r.body)
	}
}

// TestChangesLate: what a transaction stored that ended late is told, and what
// was stored after it waits for it.
func TestChangesLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, f := w.customer(1, w.a), w.customer(2, w.a)
	a := w.follow(w.a)
	a.settled()
	late, err := w.owner().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = late.Rollback() }()
	d := w.days().From
	w.arrive(late, e, change{d, false})
	w.arrive(nil, f, change{d + 1, false})
	for range 5 {
		if c := a.next(10); len(c.Changes) != 0 || c.More {
			t.Errorf("told past a transaction under way: %q", story(c.Changes))
		}
	}
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	line := func(e meter.EAN, d meter.Day) string {
		return "ARRIVED " + e.String() + " import_low " + d.String() + " " + (d + 1).String()
	}
	same(t, "both, in the order of their storing", a.settled(), line(e, d), line(f, d+1))
}

// change is a day of import_low that a batch stores.
type change struct {
	day       meter.Day
	corrected bool
}

// arrive stores what ingest notes of a batch, without the blocks, in a
// transaction of the test's, or one of its own.
func (w *world) arrive(tx interface {
	Exec(string, ...any) (sql.Result, error)
}, e meter.EAN, changes ...change) {
	w.t.Helper()
	if tx == nil {
		tx = w.owner()
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.day, b.day) })
	var b []byte
	for _, c := range changes {
		kind := byte(1)
		if c.corrected {
			kind = 2
		}
		b = append(b, kind, byte(c.day>>24), byte(c.day>>16), byte(c.day>>8), byte(c.day), 0, 1, 1, 0, byte(w.field("import_low")))
	}
	if _, err := tx.Exec(`INSERT INTO ingest_batch (ean, batch_id, keys, blocks, changed) VALUES ($1, $2, 0, 1, $3)`, e.Int64(), uuid.NewString(), b); err != nil {
		w.t.Error(err)
	}
}

// TestChangesWhileStoring: whatever the order in which writers begin and end,
// and however small the answers: all that applies is told, each change once, and
// nothing of anybody else's.
func TestChangesWhileStoring(t *testing.T) {
	long.Test(t)
	t.Parallel()
	w := newWorld(t, options{})
	const points, writers, batches = 4, 4, 25
	var mine, others []meter.EAN
	for i := range points {
		mine, others = append(mine, w.customer(1+i, w.a)), append(others, w.customer(101+i, w.b))
	}
	since := time.Now().Add(-time.Minute)
	a := w.follow(w.a)
	a.settled()
	days := w.days()
	var mu sync.Mutex
	want := map[string]int{}
	var all sync.WaitGroup
	for n := range writers {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for range batches {
				tx, err := w.owner().BeginTx(t.Context(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				var lines []string
				for range 1 + r.IntN(3) {
					ours := r.IntN(2) == 0
					list := others
					if ours {
						list = mine
					}
					e := list[r.IntN(points)]
					// Every second day at most, so that no two make one run.
					var c []change
					for _, k := range r.Perm(days.Len() / 2)[:1+r.IntN(14)] {
						c = append(c, change{days.From + meter.Day(2*k), r.IntN(2) == 0})
					}
					w.arrive(tx, e, c...)
					for _, c := range c {
						kind := "ARRIVED "
						if c.corrected {
							kind = "CORRECTED "
						}
						if ours {
							lines = append(lines, kind+e.String()+" import_low "+c.day.String()+" "+(c.day+1).String())
						}
					}
				}
				time.Sleep(time.Duration(r.IntN(4000)) * time.Microsecond)
				if r.IntN(8) == 0 {
					if err := tx.Rollback(); err != nil {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				for _, l := range lines {
					want[l]++
				}
				mu.Unlock()
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := map[string]int{}
	stored := make(chan struct{})
	go func() { all.Wait(); close(stored) }()
	r := rand.New(rand.NewPCG(7, 7))
	for polling := true; polling; {
		select {
		case <-stored:
			polling = false
		default:
		}
		limit := 10 + r.IntN(20)
		c := a.next(limit)
		if len(c.Changes) > limit {
			t.Errorf("%d changes, at most %d were asked for", len(c.Changes), limit)
		}
		for _, l := range story(c.Changes) {
			got[l]++
		}
	}
	for _, l := range story(a.settled()) {
		got[l]++
	}
	if !maps.Equal(got, want) {
		t.Errorf("%d told, %d stored", sum(got), sum(want))
		for l, n := range want {
			if got[l] != n {
				t.Errorf("%s: %d times, stored %d", l, got[l], n)
			}
		}
		for l := range got {
			if want[l] == 0 {
				t.Errorf("%s: not stored", l)
			}
		}
	}
	// From the start again, by time: the same.
	again := map[string]int{}
	_, told := w.since(w.a, since)
	for _, l := range story(slices.DeleteFunc(told, func(c openapi.Change) bool { return c.Kind == openapi.BASES })) {
		again[l]++
	}
	if !maps.Equal(again, want) {
		t.Errorf("since: %d told, %d stored", sum(again), sum(want))
	}
}

func sum(m map[string]int) (n int) {
	for _, k := range m {
		n += k
	}
	return n
}

// TestChangesOfDamagedFiles: one metering point whose legal file does not verify
// gives nothing, and keeps nothing else from being told.
func TestChangesOfDamagedFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t, options{})
	e, bad := w.customer(1, w.a), w.customer(2, w.a)
	a := w.follow(w.a)
	a.settled()
	d := w.days().From
	w.arrive(nil, bad, change{d, false})
	w.arrive(nil, e, change{d, false})
	// An index that says too much proves nothing.
	foreign := w.customer(3, w.b)
	if _, err := w.owner().Exec(`INSERT INTO supply_period (ean, gln, from_day) VALUES ($1, $2, '2020-01-01')`, foreign.Int64(), w.a.gln.Int64()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.owner().Exec(`INSERT INTO basis_day (ean, gln, day) SELECT $1, $2, generate_series(current_date - 5, current_date + 1, '1 day')`, foreign.Int64(), w.a.gln.Int64()); err != nil {
		t.Fatal(err)
	}
	w.arrive(nil, foreign, change{d, false})
	if _, err := w.owner().Exec(`UPDATE legal_file SET file = set_byte(file, 200, get_byte(file, 200) # 1) WHERE ean = $1 AND version = 3`, bad.Int64()); err != nil {
		t.Fatal(err)
	}
	same(t, "the good one", a.settled(), "ARRIVED "+e.String()+" import_low "+d.String()+" "+(d+1).String())
	_, told := w.since(w.a, time.Now().Add(-72*time.Hour))
	for _, l := range story(told) {
		if strings.Contains(l, bad.String()) || strings.Contains(l, foreign.String()) {
			t.Errorf("told: %s", l)
		}
	}
	if w.metric("kluis_gateway_evidence_invalid_total", "kind", "legal_file") == 0 {
		t.Error("no metric")
	}
}

// byGLN is a supplier to be decided about.
type byGLN meter.GLN

func (c byGLN) Supplier() meter.GLN       { return meter.GLN(c) }
func (c byGLN) Employee() *authz.Employee { return nil }

// TestChangesOfEveryDay: whatever is in the legal files, each day on which the
// caller's bases begin or end is told, at its local midnight, and no other.
func TestChangesOfEveryDay(t *testing.T) {
	long.Test(t)
	t.Parallel()
	w := newWorld(t, options{})
	loc := w.profile.Location()
	now := time.Now()
	today := meter.DayOf(now.Add(-2*time.Minute), loc)
	start := today - 88
	r := rand.New(rand.NewPCG(17, 4))
	// Days around those on which something can turn: in the window, and before it
	// by what is retained or looked back.
	around := func() meter.Day {
		months := []int{0, 0, 0, w.profile.RetentionMonths()}
		for p := meter.Billing; p <= meter.CustomerService; p++ {
			for _, rule := range w.profile.Rules(p) {
				months = append(months, rule.Lookback)
			}
		}
		return (start + meter.Day(r.IntN(88))).AddMonths(-months[r.IntN(len(months))])
	}
	want := map[string]bool{}
	for n := range 20 {
		e := w.ean(1 + n)
		moved := around()
		steps := []authz.Step{authz.SetOccupancy{Days: meter.DayRange{From: moved - meter.Day(r.IntN(2000)), To: meter.MaxDay}}}
		if r.IntN(2) == 0 {
			steps = append(steps, authz.SetOccupancy{Days: meter.DayRange{From: moved, To: meter.MaxDay}})
		}
		supply := meter.DayRange{From: around(), To: meter.MaxDay}
		switch r.IntN(3) {
		case 0:
			supply.To = supply.From + 1 + meter.Day(r.IntN(700))
		case 1: // the last day leaves what may be asked for
			supply = meter.DayRange{From: supply.From - 1 - meter.Day(r.IntN(60)), To: supply.From}
		}
		steps = append(steps, authz.SetSupply{Supplier: w.a.gln, Days: supply})
		if r.IntN(2) == 0 {
			from := around()
			out := meter.DayRange{From: from, To: meter.MaxDay}
			if r.IntN(2) == 0 {
				out = meter.DayRange{From: from - 800, To: from}
			}
			steps = append(steps, authz.SetOptOut{Days: out})
		}
		if r.IntN(2) == 0 {
			k := w.consent(w.a)
			k.ID, k.Days = [16]byte{byte(n + 1)}, meter.DayRange{From: around(), To: meter.MaxDay}
			if r.IntN(2) == 0 {
				k.Days.To = k.Days.From + 1 + meter.Day(r.IntN(200))
			}
			steps = append(steps, k)
		}
		// What the market or the file does not take is left out.
		for _, step := range steps {
			stored := must(w.registrar.LegalFile(t.Context(), e))
			if stored.Sealed == nil {
				w.legalFile(e, meter.Electricity)
				stored = must(w.registrar.LegalFile(t.Context(), e))
			}
			before, err := w.pool.keys.LegalFile(stored.Sealed)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := authz.Apply(before, step, authz.Actor{Kind: authz.ByOperator, Name: "registrar"}, time.Now(), loc); err == nil {
				w.legalFile(e, meter.Electricity, step)
			}
		}
		file, err := w.pool.keys.LegalFile(must(w.registrar.LegalFile(t.Context(), e)).Sealed)
		if err != nil {
			t.Fatal(err)
		}
		bases := func(at time.Time) []meter.Basis { return authz.BasesNow(byGLN(w.a.gln), file, w.profile, at) }
		for d := start + 1; d <= today; d++ {
			if at := d.Start(loc); !slices.Equal(bases(at.Add(-time.Microsecond)), bases(at)) {
				want[e.String()+" "+at.UTC().Format(time.RFC3339)] = true
			}
		}
	}
	_, told := w.since(w.a, start.Start(loc).Add(time.Hour))
	got := map[string]bool{}
	for _, c := range told {
		if meter.DayOf(c.At, loc).Start(loc).Equal(c.At) {
			got[c.Ean+" "+c.At.UTC().Format(time.RFC3339)] = true
		}
	}
	if len(want) < 10 || !maps.Equal(got, want) {
		t.Errorf("%d days told, %d are", len(got), len(want))
		for l := range want {
			if !got[l] {
				t.Errorf("not told: %s", l)
			}
		}
		for l := range got {
			if !want[l] {
				t.Errorf("told: %s", l)
			}
		}
	}
}
