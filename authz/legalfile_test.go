package authz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

var t0 = instant("2026-01-05T10:00:00Z")

// life is a file with some of everything: alpha until July 2025, then beta, a
// move in March 2025 that was recorded late, consents in every state, an
// opt-out.
func life(t testing.TB) *LegalFile {
	return history(t, t0,
		Register{EAN: home, Commodity: meter.Electricity},
		SetOccupancy{days("2020-01-01", "")},
		SetOccupancy{days("2025-03-20", "")},
		SetSupply{alpha, days("2020-01-01", "")},
		SetSupply{beta, days("2025-08-01", "")},
		GrantConsent{
			ID: uuid(2), Supplier: beta, Purpose: meter.EnergyManagement,
			Classes:     []meter.Class{meter.Intervals, meter.Registers, meter.Intervals},
			Granularity: meter.PT1H, Days: days("2025-01-01", ""),
			ValidUntil: instant("2027-01-01T00:00:00Z"), Evidence: "dossier/2026-17",
		},
		GrantConsent{
			ID: uuid(1), Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: days("2025-01-01", "2026-01-01"),
			ValidUntil: instant("2027-01-01T00:00:00Z"), Evidence: "dossier/2026-18",
		},
		as{RevokeConsent{uuid(1)}, bySupplier(alpha)},
		as{request(3), bySupplier(beta)},
		as{request(4), bySupplier(beta)},
		request(5),
		request(6),
		as{AcceptConsent{uuid(3), "call/2026-17"}, byEmployee},
		as{RejectConsent{uuid(4)}, byEmployee},
		as{RevokeConsent{uuid(6)}, byEmployee},
		CorrectMove{day("2025-03-20"), day("2025-03-15")},
		CorrectSupply{beta, days("2025-07-01", "2025-08-01")},
		SetOptOut{days("2025-09-01", "2025-10-01")},
	)
}

func TestLegalFileTellsItsStory(t *testing.T) {
	t.Parallel()
	f := life(t)
	if f.EAN() != home || f.Version() != 18 || f.Commodity() != meter.Electricity || f.Actor() != operator {
		t.Errorf("head: %v %d %v %q", f.EAN(), f.Version(), f.Commodity(), f.Actor())
	}
	if want := instant("2026-01-05T10:17:00Z"); !f.SealedAt().Equal(want) {
		t.Errorf("sealed at %v", f.SealedAt())
	}
	if got, want := f.Step(), Step(SetOptOut{days("2025-09-01", "2025-10-01")}); got != want {
		t.Errorf("step %v", got)
	}
	if got, want := f.Occupancies(), []Occupancy{{days("2020-01-01", "2025-03-15")}, {days("2025-03-15", "")}}; !reflect.DeepEqual(got, want) {
		t.Errorf("occupancies %v", got)
	}
	if got, want := f.SupplyPeriods(), []SupplyPeriod{{alpha, days("2020-01-01", "2025-07-01")}, {beta, days("2025-07-01", "")}}; !reflect.DeepEqual(got, want) {
		t.Errorf("supply %v", got)
	}
	at := func(minute int, who Actor) ConsentEvent {
		return ConsentEvent{At: t0.Add(time.Duration(minute) * time.Minute), By: who}
	}
	until := instant("2027-01-01T00:00:00Z")
	asked := Consent{
		Supplier: beta, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals}, Granularity: meter.PT1H, Days: days("2025-07-01", ""),
		ValidUntil: until, Occupancy: day("2025-03-15"), Evidence: "contract/2026-3",
	}
	three, four, five, six := asked, asked, asked, asked
	three.ID, three.State, three.Requested, three.Answered, three.Answer = uuid(3), ConsentActive, at(8, bySupplier(beta)), at(12, byEmployee), "call/2026-17"
	three.ValidFrom = three.Answered.At
	four.ID, four.State, four.Requested, four.Answered = uuid(4), ConsentRejected, at(9, bySupplier(beta)), at(13, byEmployee)
	five.ID, five.State, five.Requested = uuid(5), ConsentRequested, at(10, operator)
	six.ID, six.State, six.Requested, six.Revoked = uuid(6), ConsentRevoked, at(11, operator), at(14, byEmployee)
	want := []Consent{
		{
			ID: uuid(1), Supplier: alpha, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Intervals},
			Granularity: meter.PT15M, Days: days("2025-01-01", "2026-01-01"), ValidFrom: t0.Add(6 * time.Minute), ValidUntil: until,
			Occupancy: day("2025-03-15"), State: ConsentRevoked, Answered: at(6, operator), Revoked: at(7, bySupplier(alpha)), Evidence: "dossier/2026-18",
		},
		{
			ID: uuid(2), Supplier: beta, Purpose: meter.EnergyManagement, Classes: []meter.Class{meter.Registers, meter.Intervals},
			Granularity: meter.PT1H, Days: days("2025-01-01", ""), ValidFrom: t0.Add(5 * time.Minute), ValidUntil: until,
			Occupancy: day("2025-03-15"), State: ConsentActive, Answered: at(5, operator), Evidence: "dossier/2026-17",
		},
		three, four, five, six,
	}
	if got := f.Consents(); !reflect.DeepEqual(got, want) {
		t.Errorf("consents\n%+v\nwant\n%+v", got, want)
	}
	if got := f.OptOuts(); !reflect.DeepEqual(got, []meter.DayRange{days("2025-09-01", "2025-10-01")}) {
		t.Errorf("opt-outs %v", got)
	}
	for _, c := range []struct {
		day  string
		from string // of the occupancy; "" for none
	}{{"2019-12-31", ""}, {"2020-01-01", "2020-01-01"}, {"2025-03-14", "2020-01-01"}, {"2025-03-15", "2025-03-15"}, {"2099-01-01", "2025-03-15"}} {
		o, ok := f.OccupancyAt(day(c.day))
		if ok != (c.from != "") || ok && o.Days.From != day(c.from) {
			t.Errorf("occupancy on %s: %v %v", c.day, o, ok)
		}
	}
	for _, c := range want {
		got, ok := f.Consent(c.ID)
		if !ok || !reflect.DeepEqual(got, c) {
			t.Errorf("consent %x: %+v", c.ID, got)
		}
		got.Classes[0] = 0
	}
	if _, ok := f.Consent(uuid(9)); ok || f.Consents()[0].Classes[0] == 0 {
		t.Error("a consent there is not, or a caller changed one")
	}
	if !f.Relates(alpha) || !f.Relates(beta) || f.Relates(gamma) || f.Relates(meter.GLN{}) {
		t.Error("relations are wrong")
	}
}

// What accessors return can be scribbled on.
func TestLegalFileIsImmutable(t *testing.T) {
	t.Parallel()
	f := life(t)
	before := f.Payload()
	f.Payload()[0] ^= 1
	f.Occupancies()[0].Days.To = 0
	f.SupplyPeriods()[0].Supplier = gamma
	f.Consents()[0].State = ConsentActive
	f.Consents()[0].Classes[0] = meter.Registers
	f.OptOuts()[0] = meter.DayRange{}
	if !bytes.Equal(f.Payload(), before) || !bytes.Equal(f.encode(), before) {
		t.Error("a caller changed the file")
	}
	b := bytes.Clone(before)
	g, err := parseLegalFile(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 0xff
	}
	if !bytes.Equal(g.Payload(), before) || !bytes.Equal(g.encode(), before) {
		t.Error("the file refers to the bytes it was parsed from")
	}
}

// Nothing outside the package can make these or set what is in them.
func TestNoExportedFields(t *testing.T) {
	t.Parallel()
	for _, v := range []any{LegalFile{}, Supplier{}, SealKeys{}, Grant{}} {
		typ := reflect.TypeOf(v)
		for i := range typ.NumField() {
			if typ.Field(i).IsExported() {
				t.Errorf("%v.%s is exported", typ, typ.Field(i).Name)
			}
		}
	}
}

func TestLegalFileGolden(t *testing.T) {
	t.Parallel()
	const want = goldenLegalFile
	f := life(t)
	if got := hex.EncodeToString(f.Payload()); got != want {
		t.Errorf("payload\n%s", got)
	}
	const digest = goldenLegalFileDigest
	if d := f.Digest(); hex.EncodeToString(d[:]) != digest {
		t.Errorf("digest %x", d)
	}
}

// A file that its rules forbid is refused, however well it is signed.
func TestLegalFileInvariants(t *testing.T) {
	t.Parallel()
	type file = LegalFile
	for name, break_ := range map[string]func(*file){
		"no EAN":                         func(f *file) { f.ean = meter.EAN{} },
		"unknown commodity":              func(f *file) { f.commodity = 3 },
		"version 0":                      func(f *file) { f.version = 0 },
		"version past int64":             func(f *file) { f.version = 1 << 63 },
		"version 1 that is none":         func(f *file) { f.version = 1 },
		"no sealing time":                func(f *file) { f.sealedAt = f.sealedAt.AddDate(-200, 0, 0) },
		"no previous version":            func(f *file) { f.previous = [32]byte{} },
		"registered again":               func(f *file) { f.step = Register{home, meter.Electricity}.Encode() },
		"no step":                        func(f *file) { f.step = nil },
		"step with a tail":               func(f *file) { f.step = append(bytes.Clone(f.step), 0) },
		"no actor":                       func(f *file) { f.actor = Actor{} },
		"actor of no kind":               func(f *file) { f.actor.Kind = 0 },
		"actor of an unknown kind":       func(f *file) { f.actor.Kind = 4 },
		"supplier that is no GLN":        func(f *file) { f.actor = Actor{BySupplier, "8712345600011"} },
		"supplier sets opt-outs":         func(f *file) { f.actor = bySupplier(beta) },
		"customer sets opt-outs":         func(f *file) { f.actor = byEmployee },
		"actor of two lines":             func(f *file) { f.actor.Name = "a\nb" },
		"actor too long":                 func(f *file) { f.actor.Name = strings.Repeat("a", maxActor+1) },
		"occupancy reversed":             func(f *file) { f.occupancies[0].Days = days("2020-01-02", "2020-01-01") },
		"occupancy empty":                func(f *file) { f.occupancies[0].Days = days("2020-01-02", "2020-01-02") },
		"occupancy before 1970":          func(f *file) { f.occupancies[0].Days.From = -1 },
		"occupancy ends past 9999":       func(f *file) { f.occupancies[1].Days.To = lastDay + 1 },
		"occupancies overlap":            func(f *file) { f.occupancies[0].Days.To++ },
		"occupancies unsorted":           func(f *file) { f.occupancies[0], f.occupancies[1] = f.occupancies[1], f.occupancies[0] },
		"too many occupancies":           func(f *file) { f.occupancies = make([]Occupancy, maxOccupancies+1) },
		"supply by nobody":               func(f *file) { f.supply[0].Supplier = meter.GLN{} },
		"supply overlaps":                func(f *file) { f.supply[0].Days.To++ },
		"supply unsorted":                func(f *file) { f.supply[0], f.supply[1] = f.supply[1], f.supply[0] },
		"too many supply periods":        func(f *file) { f.supply = make([]SupplyPeriod, maxSupplyPeriods+1) },
		"consent without id":             func(f *file) { f.consents[0].ID = [16]byte{} },
		"consent id twice":               func(f *file) { f.consents[0].ID = f.consents[1].ID },
		"consents unsorted":              func(f *file) { f.consents[0].ID = uuid(3) },
		"consent to nobody":              func(f *file) { f.consents[0].Supplier = meter.GLN{} },
		"consent for no purpose":         func(f *file) { f.consents[0].Purpose = 0 },
		"consent for unknown purpose":    func(f *file) { f.consents[0].Purpose = 6 },
		"consent without class":          func(f *file) { f.consents[0].Classes = nil },
		"consent for unknown class":      func(f *file) { f.consents[0].Classes = []meter.Class{3} },
		"consent classes unsorted":       func(f *file) { f.consents[0].Classes = []meter.Class{2, 1} },
		"consent class twice":            func(f *file) { f.consents[0].Classes = []meter.Class{2, 2} },
		"consent without granularity":    func(f *file) { f.consents[0].Granularity = 0 },
		"consent of unknown granularity": func(f *file) { f.consents[0].Granularity = 5 },
		"consent for no day":             func(f *file) { f.consents[0].Days.To = f.consents[0].Days.From },
		"consent never valid":            func(f *file) { f.consents[0].ValidUntil = f.consents[0].ValidFrom },
		"consent valid without end":      func(f *file) { f.consents[0].ValidUntil = lastTime },
		"consent of no occupancy":        func(f *file) { f.consents[0].Occupancy = day("2019-01-01") },
		"consent inside an occupancy":    func(f *file) { f.consents[0].Occupancy++ },
		"consent state unknown":          func(f *file) { f.consents[1].State = 5 },
		"consent without state":          func(f *file) { f.consents[1].State = 0 },
		"asked for, never asked":         func(f *file) { f.consents[1].State = ConsentRequested },
		"asked for, and answered":        func(f *file) { f.consents[2].State, f.consents[2].Answer = ConsentRequested, "" },
		"asked for, and withdrawn":       func(f *file) { f.consents[5].State = ConsentRequested },
		"given, never answered":          func(f *file) { f.consents[4].State = ConsentActive },
		"given by a withdrawn request":   func(f *file) { f.consents[5].State = ConsentActive },
		"rejected, never answered":       func(f *file) { f.consents[4].State = ConsentRejected },
		"rejected, never asked":          func(f *file) { f.consents[1].State = ConsentRejected },
		"rejected and revoked":           func(f *file) { f.consents[3].Revoked = by(f.sealedAt) },
		"revoked out of nothing":         func(f *file) { f.consents[5].Requested = ConsentEvent{} },
		"answered before it was asked":   func(f *file) { f.consents[2].Answered.At = f.consents[2].Requested.At.Add(-1e6) },
		"withdrawn before it was asked":  func(f *file) { f.consents[5].Revoked.At = f.consents[5].Requested.At.Add(-1e6) },
		"asked later than sealed":        func(f *file) { f.consents[4].Requested.At = f.sealedAt.Add(1e6) },
		"asked for when it had ended":    func(f *file) { f.consents[4].ValidUntil = f.consents[4].Requested.At.Truncate(time.Second) },
		"valid until half a second":      func(f *file) { f.consents[4].ValidUntil = f.consents[4].ValidUntil.Add(time.Second / 2) },
		"asked for by another":           func(f *file) { f.consents[4].Requested.By = bySupplier(alpha) },
		"asked for by the customer":      func(f *file) { f.consents[4].Requested.By = byEmployee },
		"answered by the supplier":       func(f *file) { f.consents[2].Answered.By = bySupplier(beta) },
		"rejected by the supplier":       func(f *file) { f.consents[3].Answered.By = bySupplier(beta) },
		"revoked by another supplier":    func(f *file) { f.consents[0].Revoked.By = bySupplier(beta) },
		"asked for by nobody":            func(f *file) { f.consents[4].Requested.By = Actor{} },
		"answered by who is no party":    func(f *file) { f.consents[2].Answered.By.Kind = 4 },
		"a yes without proof":            func(f *file) { f.consents[2].Answer = "" },
		"a yes with a proof of lines":    func(f *file) { f.consents[2].Answer = "a\nb" },
		"a yes with too much proof":      func(f *file) { f.consents[2].Answer = strings.Repeat("e", maxEvidence+1) },
		"a no with proof":                func(f *file) { f.consents[3].Answer = "x" },
		"a request with proof of a yes":  func(f *file) { f.consents[4].Answer = "x" },
		"registered with proof of a yes": func(f *file) { f.consents[1].Answer = "x" },
		"active but revoked at":          func(f *file) { f.consents[0].State = ConsentActive },
		"revoked but never":              func(f *file) { f.consents[1].State = ConsentRevoked },
		"granted later than sealed":      func(f *file) { f.consents[1].Answered.At = f.sealedAt.Add(1e6) },
		"revoked before granted":         func(f *file) { f.consents[0].Revoked.At = f.consents[0].Answered.At.Add(-1e6) },
		"revoked later than sealed":      func(f *file) { f.consents[0].Revoked.At = f.sealedAt.Add(1e6) },
		"no evidence":                    func(f *file) { f.consents[0].Evidence = "" },
		"evidence too long":              func(f *file) { f.consents[0].Evidence = strings.Repeat("e", maxEvidence+1) },
		"evidence not UTF-8":             func(f *file) { f.consents[0].Evidence = "\xff" },
		"too many consents":              func(f *file) { f.consents = make([]Consent, maxConsents+1) },
		"opt-out empty":                  func(f *file) { f.optOuts[0].To = f.optOuts[0].From },
		"opt-outs adjacent": func(f *file) {
			f.optOuts = []meter.DayRange{days("2025-01-01", "2025-02-01"), days("2025-02-01", "2025-03-01")}
		},
		"too many opt-outs": func(f *file) { f.optOuts = make([]meter.DayRange, maxOptOuts+1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := *life(t)
			f.facts = f.facts.clone()
			f.consents = f.Consents()
			break_(&f)
			if _, err := parseLegalFile(f.encode()); !errors.Is(err, canonical.ErrMalformed) {
				t.Fatalf("accepted, or wrong error: %v", err)
			}
		})
	}
}

func TestFirstVersionInvariants(t *testing.T) {
	t.Parallel()
	for name, break_ := range map[string]func(*LegalFile){
		"registers another EAN":       func(f *LegalFile) { f.step = Register{testEAN(9), meter.Electricity}.Encode() },
		"registers another commodity": func(f *LegalFile) { f.step = Register{home, meter.Gas}.Encode() },
		"has a previous version":      func(f *LegalFile) { f.previous[0] = 1 },
		"is no registration":          func(f *LegalFile) { f.step = SetOptOut{days("2025-01-01", "")}.Encode() },
		"calls itself version 2":      func(f *LegalFile) { f.version = 2 },
	} {
		f := *history(t, t0, Register{home, meter.Electricity})
		if _, err := parseLegalFile(f.encode()); err != nil {
			t.Fatal(err)
		}
		break_(&f)
		if _, err := parseLegalFile(f.encode()); !errors.Is(err, canonical.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// largest is a file as long as the bounds allow.
func largest(t testing.TB) *LegalFile {
	f := *life(t)
	f.facts = facts{ean: f.ean, commodity: f.commodity}
	f.step, f.actor = GrantConsent{
		ID: uuid(1), Supplier: alpha, Purpose: meter.Billing, Classes: []meter.Class{1, 2}, Granularity: meter.P1M,
		Days: days("2020-01-01", ""), ValidUntil: instant("2030-01-01T00:00:00Z"), Evidence: strings.Repeat("e", maxEvidence),
	}.Encode(), Actor{ByOperator, strings.Repeat("a", maxActor)}
	event := ConsentEvent{t0, f.actor}
	for i := range 1024 {
		r := meter.DayRange{From: meter.Day(2 * i), To: meter.Day(2*i + 1)}
		f.occupancies = append(f.occupancies, Occupancy{r})
		f.supply = append(f.supply, SupplyPeriod{alpha, r})
		f.optOuts = append(f.optOuts, r)
		c := Consent{
			Supplier: alpha, Purpose: meter.Billing, Classes: []meter.Class{1, 2}, Granularity: meter.P1M, Days: r,
			ValidFrom: t0, ValidUntil: t0.Add(1e9), Requested: event, Answered: event, Revoked: event, State: ConsentRevoked, Occupancy: r.From,
			Evidence: strings.Repeat("e", maxEvidence), Answer: strings.Repeat("a", maxEvidence),
		}
		binary.BigEndian.PutUint64(c.ID[:], uint64(i+1))
		f.consents = append(f.consents, c)
	}
	return &f
}

// The largest file the bounds allow fits a seal.
func TestLargestLegalFileFits(t *testing.T) {
	t.Parallel()
	b := largest(t).encode()
	if len(b) > maxPayload {
		t.Errorf("%d bytes, more than maxPayload", len(b))
	}
	if _, err := parseLegalFile(b); err != nil {
		t.Error(err)
	}
}

// What a client makes of a consent's scope, line by line, is what a token names.
func TestScopeDigest(t *testing.T) {
	t.Parallel()
	f := life(t)
	c, _ := f.Consent(uuid(3))
	const text = "kluis/consent-scope/1\n" + "871685900000000011\n" + "8712345600020\n" + "ENERGY_MANAGEMENT\n" + "intervals\n" + "PT1H\n" +
		"2025-07-01\n" + "\n" + "2027-01-01T00:00:00Z\n" + "contract/2026-3\n"
	if d := c.ScopeDigest(home); hex.EncodeToString(d[:]) != goldenScopeDigest || d != sha256.Sum256([]byte(text)) || d != request(3).Scope().Digest(home) || d != c.Scope().Digest(home) {
		t.Errorf("digest of the scope %x", d)
	}
	if d := c.Digest(home); hex.EncodeToString(d[:]) != goldenConsentDigest {
		t.Errorf("digest of the consent %x", d)
	}
	// Classes in whatever order, a time in whatever zone.
	g := grant(1, func(g *GrantConsent) {
		g.Classes, g.Days = []meter.Class{2, 1, 2}, days("2025-01-01", "2026-01-01")
		g.ValidUntil = time.Date(2026, 7, 1, 0, 0, 0, 999999999, amsterdam)
	})
	if d := g.Scope().Digest(home); d != sha256.Sum256([]byte("kluis/consent-scope/1\n871685900000000011\n8712345600013\nENERGY_MANAGEMENT\nregisters,intervals\nPT15M\n"+
		"2025-01-01\n2026-01-01\n2026-06-30T22:00:00Z\ndossier/2026-17\n")) {
		t.Errorf("digest %x", d)
	}
	if reflect.DeepEqual(g.Classes, []meter.Class{1, 2}) {
		t.Error("the classes were sorted in place")
	}
	// Whatever changes in a consent, its digest does; and only what it permits
	// changes that of its scope.
	for name, change := range map[string]struct {
		f     func(*Consent)
		scope bool
	}{
		"id": {func(c *Consent) { c.ID[0]++ }, false}, "supplier": {func(c *Consent) { c.Supplier = alpha }, true}, "purpose": {func(c *Consent) { c.Purpose = 1 }, true},
		"classes": {func(c *Consent) { c.Classes = []meter.Class{1} }, true}, "granularity": {func(c *Consent) { c.Granularity = 4 }, true},
		"from": {func(c *Consent) { c.Days.From++ }, true}, "to": {func(c *Consent) { c.Days.To = day("2026-01-01") }, true},
		"until": {func(c *Consent) { c.ValidUntil = c.ValidUntil.Add(time.Second) }, true}, "evidence": {func(c *Consent) { c.Evidence += "x" }, true},
		"occupancy": {func(c *Consent) { c.Occupancy++ }, false}, "state": {func(c *Consent) { c.State = 4 }, false},
		"asked at": {func(c *Consent) { c.Requested.At = c.Requested.At.Add(time.Microsecond) }, false}, "asked by": {func(c *Consent) { c.Requested.By = operator }, false},
		"answered at": {func(c *Consent) { c.Answered.At = c.Answered.At.Add(time.Microsecond) }, false}, "answered by": {func(c *Consent) { c.Answered.By.Name = "x" }, false},
		"revoked": {func(c *Consent) { c.Revoked = by(t0) }, false}, "answer": {func(c *Consent) { c.Answer += "x" }, false},
	} {
		k, _ := f.Consent(uuid(3))
		change.f(&k)
		if k.Digest(home) == c.Digest(home) || (k.ScopeDigest(home) != c.ScopeDigest(home)) != change.scope {
			t.Errorf("%s: digests %x and %x", name, k.Digest(home), k.ScopeDigest(home))
		}
	}
	if c.Digest(testEAN(2)) == c.Digest(home) || c.ScopeDigest(testEAN(2)) == c.ScopeDigest(home) {
		t.Error("the same of another metering point")
	}
}

// Whatever parses re-encodes to the same bytes.
func FuzzLegalFile(f *testing.F) {
	f.Add(life(f).Payload())
	f.Add(history(f, t0, Register{home, meter.Gas}).Payload())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := parseLegalFile(b)
		if err != nil {
			return
		}
		if !bytes.Equal(file.encode(), b) {
			t.Fatalf("re-encodes differently:\n%x\n%x", b, file.encode())
		}
	})
}
