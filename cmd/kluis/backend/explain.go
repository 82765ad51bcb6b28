package backend

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"kluis/auditlog"
	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/cryptoserver/checkpoint"
	"kluis/cryptoserver/envelope"
	"kluis/internal/audit"
	"kluis/internal/postgres"
	"kluis/meter"
)

// ErrEvidence says that what a decision was made on, or its record, is missing
// or was altered; the text says which.
var ErrEvidence = errors.New("evidence missing or altered")

func evidence(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrEvidence}, args...)...)
}

// ErrNoRecord says that there is no access record of a request.
var ErrNoRecord = errors.New("no access record")

// storedWithin is how long a version of a legal file may take from its sealing
// until every gateway decides by it: it is stored after it is sealed, clocks
// differ, and the control feed voids an older one within a minute.
const storedWithin = time.Minute

const filesPage = 16 // legal files fetched at once; each up to 1 MiB

// Verdict says how a record compares with what its evidence gives.
type Verdict string

// The verdicts there are.
const (
	Agrees    Verdict = "AGREES"
	Differs   Verdict = "DIFFERS"
	Undecided Verdict = "NOT_DECIDED" // nothing was decided about a metering point
)

// Ruling is what was decided about a day of a field: given, on which basis and
// rule and how fine; or withheld, and why.
type Ruling struct {
	Purpose     meter.Purpose
	Field       meter.FieldCode
	Given       bool
	Kind        meter.Kind
	Granularity meter.Resolution
	Basis       meter.Basis
	Rule        string
	Reason      meter.Reason
}

// Line is a ruling, and the days it is of.
type Line struct {
	Ruling
	Days meter.DaySet
}

// Difference is a run of days of a field that two decisions rule differently;
// nil where one has no ruling.
type Difference struct {
	Days       meter.DaySet
	Then, Else *Ruling
}

// Explanation is a recorded decision made again.
type Explanation struct {
	Record audit.Record
	Leaf   int64     // of the audit log; -1: the record is not logged
	Signed int64     // leaves of the checkpoint that the record was proven against; 0: none
	At     time.Time // of that checkpoint

	Receipt   *envelope.Receipt // nil: nothing was opened
	Profile   *meter.Profile    // nil when nothing was decided
	FirstUsed time.Time         // of the profile; zero when it was given by hand
	File      *authz.LegalFile  // by which it was decided; nil: there was none
	Supplier  string            // name, as its record says now; "" when there is none
	// Behalf is the supplier of whom an employee's dry run told what it may read.
	// The record does not name it: it is the one of whom that is true. Zero: none.
	Behalf meter.GLN
	role   authz.Role // of the employee; the record does not say it either

	Verdict Verdict
	Why     string // of the verdict, where it needs words
	// Lines are what was answered, by the record: what was granted, but for
	// what was withheld after all, and what was withheld.
	Lines []Line
	// Differences are between the record (Then) and the decision made again
	// (Else).
	Differences []Difference
	// Later is what the gateway granted, and the cryptoserver, which decided
	// after it, did not: midnight passed between.
	Later []Line
	// OnOpening is what was withheld by what was stored, not by the decision.
	OnOpening []Line

	Hindsight Hindsight
}

// Hindsight is what the newest legal file says of the same request at the same
// time.
type Hindsight struct {
	File        *authz.LegalFile // the newest; nil: there is none
	Differences []Difference     // between the decision (Then) and that by the newest file (Else)
	Versions    []*authz.LegalFile
	// Problem is what is wrong with later versions; empty: nothing.
	Problem string
}

// Clean says whether the decision bears out, on evidence nobody altered.
func (e *Explanation) Clean() bool { return e.Verdict != Differs && e.Hindsight.Problem == "" }

// recordCaller is the caller that a record names. It can only be decided
// about; production callers come from verified tokens.
type recordCaller struct {
	gln      meter.GLN
	employee *authz.Employee
}

func (c recordCaller) Supplier() meter.GLN       { return c.gln }
func (c recordCaller) Employee() *authz.Employee { return c.employee }

// caller makes the caller of the record. Of an employee's errand it says the
// reason, and the rest is the request: an errand for less would have been
// refused. The roles that serve customers are treated alike.
func (e *Explanation) caller() authz.Caller {
	r := &e.Record
	c := recordCaller{gln: r.Supplier}
	if r.Employee == "" {
		return c
	}
	c.employee = &authz.Employee{Subject: r.Employee, Role: e.role, Errand: authz.Errand{Kind: authz.ErrandReadings, EAN: r.EAN, Reason: r.Reason, Days: r.Days, Fields: r.Fields}}
	if r.Operation == audit.DryRun {
		c.employee.Errand = authz.Errand{Kind: authz.ErrandView, EAN: r.EAN, Reason: r.Reason}
	}
	if !e.Behalf.IsZero() {
		return authz.OnBehalfOf(c, e.Behalf)
	}
	return c
}

// Explain makes the decisions of an interaction again, of one metering point
// when ean is not zero. profile is the file of the market profile, for when it
// is not stored; nil: none is given. The errors are ErrNoRecord, ErrEvidence
// and the database's.
func (l *AuditLog) Explain(ctx context.Context, interaction uuid.UUID, ean meter.EAN, profile []byte) ([]*Explanation, error) {
	keys := []leaf.Key{{Kind: leaf.Access, ID: interaction, Number: ean.Int64()}}
	if ean.IsZero() {
		// The access log is kept by metering point: by interaction alone it is
		// the audit log that finds a record.
		logged, err := l.Interaction(ctx, interaction, auditlog.MaxTogether+1)
		if err != nil {
			return nil, err
		}
		if len(logged) > auditlog.MaxTogether {
			return nil, auditlog.NotTogether(interaction)
		}
		if len(logged) == 0 {
			return nil, fmt.Errorf("%w of interaction %s in the audit log: check the id; of a request of the last seconds say the metering point too, with --ean", ErrNoRecord, interaction)
		}
		keys = keys[:0]
		for _, k := range logged {
			keys = append(keys, k.Key)
		}
	}
	var out []*Explanation
	for _, k := range keys {
		e, err := l.explain(ctx, k, profile)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

func (l *AuditLog) explain(ctx context.Context, k leaf.Key, profile []byte) (*Explanation, error) {
	e := &Explanation{Leaf: -1, role: authz.Agent}
	if err := l.readRecord(ctx, e, k); err != nil {
		return nil, err
	}
	if err := l.readSupplier(ctx, e); err != nil {
		return nil, err
	}
	r := &e.Record
	switch {
	case r.Operation == audit.List:
		e.Verdict, e.Why = Undecided, "It was a list of metering points: nothing was decided about one."
		return e, nil
	case r.Operation == audit.Changes:
		e.Verdict, e.Why = Undecided, "It was about changes for the caller: nothing was decided about one metering point."
		return e, nil
	case r.Operation == audit.SupplierStep, r.Operation == audit.Oversee, r.Operation == audit.Find && r.EAN.IsZero():
		e.Verdict, e.Why = Undecided, "It named no metering point: nothing was decided about one."
		return e, nil
	case r.Operation != audit.Readings && r.Operation != audit.DryRun:
		e.Verdict, e.Why = Undecided, "It was not about readings: nothing was decided about any."
		return e, nil
	case r.FileVersion == 0 && r.Outcome == audit.Failed:
		e.Verdict, e.Why = Undecided, "It failed before anything was decided: the stored facts did not verify. Nothing was given."
		return e, nil
	}
	if err := l.readProfile(ctx, e, profile); err != nil {
		return nil, err
	}
	if err := l.readFile(ctx, e); err != nil {
		return nil, err
	}
	if r.FileVersion == 0 {
		return e, l.noRelation(ctx, e)
	}
	then, err := e.decide(e.File, r.At)
	if err != nil {
		e.Verdict, e.Why = Differs, "By the legal file that the record names the caller had nothing to do with the metering point: nothing of it may have been given."
		e.Lines = lines(recorded(r))
		return e, nil
	}
	if err := e.compare(then); err != nil {
		return nil, err
	}
	if e.Verdict == Differs && r.Operation == audit.DryRun && r.Employee != "" {
		if then, err = e.sentFor(then); err != nil {
			return nil, err
		}
	}
	return e, l.hindsight(ctx, e, then)
}

// sentFor looks for what an employee's dry run was about, which the record does
// not say: what an employee may read who serves no customers, or what a supplier
// may. Where it was nothing of that, all stays as it was.
func (e *Explanation) sentFor(own decision) (decision, error) {
	type errand struct {
		role   authz.Role
		behalf meter.GLN
	}
	errands := []errand{{role: authz.Auditor}}
	for _, s := range e.File.SupplyPeriods() {
		errands = append(errands, errand{authz.Agent, s.Supplier})
	}
	for _, c := range e.File.Consents() {
		errands = append(errands, errand{authz.Agent, c.Supplier})
	}
	for _, on := range errands {
		e.role, e.Behalf = on.role, on.behalf
		then, err := e.decide(e.File, e.Record.At)
		if err != nil {
			continue
		}
		if err := e.compare(then); err != nil || e.Verdict == Agrees {
			return then, err
		}
	}
	e.role, e.Behalf = authz.Agent, meter.GLN{}
	return own, e.compare(own)
}

// About is the supplier whose rights were decided about; the grid operator's
// own GLN where it was its employee's.
func (e *Explanation) About() meter.GLN {
	if !e.Behalf.IsZero() {
		return e.Behalf
	}
	return e.Record.Supplier
}

// readRecord finds the record, and proves that it is what was logged.
func (l *AuditLog) readRecord(ctx context.Context, e *Explanation, k leaf.Key) error {
	index, err := l.Indexes(ctx, []leaf.Key{k})
	if err != nil {
		return err
	}
	e.Leaf = index[0]
	rows, err := l.Rows(ctx, []leaf.Key{k})
	if err != nil {
		return err
	}
	row := rows[0]
	switch {
	case row == nil && e.Leaf < 0:
		return fmt.Errorf("%w of interaction %s at this metering point: check both", ErrNoRecord, uuid.UUID(k.ID))
	case row == nil:
		return evidence("leaf %d of the audit log is of an access record that is not there any more: run kluis audit verify", e.Leaf)
	}
	if e.Record, err = audit.Parse(row.Content, row.Receipt); err != nil {
		return evidence("%w", err)
	}
	r := &e.Record
	if r.InteractionID != k.ID || r.EAN.Int64() != k.Number {
		return evidence("the access record is that of another request: its row was altered")
	}
	if e.Leaf >= 0 {
		proofs, err := auditlog.Prove(ctx, l, l.Log, k.ID, k.Number, nil)
		switch {
		case errors.Is(err, auditlog.ErrNotLogged): // not signed yet
		case errors.Is(err, postgres.ErrUnavailable), ctx.Err() != nil:
			return err
		case err != nil:
			return evidence("%w", err)
		default:
			i := slices.IndexFunc(proofs, func(p auditlog.Proof) bool { return p.Index == e.Leaf })
			if i < 0 {
				return evidence("leaf %d of the audit log is of another record", e.Leaf)
			}
			c, err := checkpoint.Open(proofs[i].Checkpoint, l.Log.Origin, l.Log.Keys...)
			if err != nil {
				return evidence("%w", err)
			}
			e.Signed, e.At = int64(c.Size), c.At
		}
	}
	if len(r.Receipt) == 0 {
		return nil
	}
	rc, err := r.Opening()
	if err != nil {
		return evidence("the cryptoserver's receipt is of another request, or of a decision on other evidence, than the record: %w", err)
	}
	e.Receipt = rc
	return nil
}

// readSupplier finds the name of the caller. A name is no evidence.
func (l *AuditLog) readSupplier(ctx context.Context, e *Explanation) error {
	sealed, err := l.Supplier(ctx, e.Record.Supplier)
	if err != nil || sealed == nil {
		return err
	}
	if s, err := l.Seals.Supplier(sealed); err == nil && s.GLN() == e.Record.Supplier {
		e.Supplier = s.Name()
	}
	return nil
}

func (l *AuditLog) readProfile(ctx context.Context, e *Explanation, given []byte) error {
	want := e.Record.Profile
	yaml, first, err := l.Profile(ctx, want)
	switch {
	case err != nil:
		return err
	case yaml != nil && sha256.Sum256(yaml) != want:
		return evidence("the stored market profile sha256 %x is not that profile: its bytes have another digest", want)
	case yaml == nil && given == nil:
		return evidence("the market profile sha256 %x, by which it was decided, is not stored: give its file with --profile", want)
	case yaml == nil && sha256.Sum256(given) != want:
		return evidence("the market profile given has sha256 %x; it was decided by %x, which is not stored", sha256.Sum256(given), want)
	case yaml == nil:
		yaml = given
	default:
		e.FirstUsed = first
	}
	if e.Profile, err = meter.ParseProfile(yaml); err != nil {
		return evidence("market profile sha256 %x: %w", want, err)
	}
	return nil
}

// readFile finds the legal file that the record names; none when it names none.
func (l *AuditLog) readFile(ctx context.Context, e *Explanation) error {
	r := &e.Record
	if r.FileVersion == 0 {
		return nil
	}
	files, err := l.LegalFiles(ctx, r.EAN, r.FileVersion, 1)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return evidence("version %d of the legal file, by which it was decided, is not there, nor is a later one: deleted, or the database was put back; run kluis audit verify", r.FileVersion)
	}
	f, err := l.verifyLegalFile(files[0], r.EAN)
	switch {
	case err != nil:
		return evidence("version %d of the legal file: %w", r.FileVersion, err)
	case f.Version() != r.FileVersion:
		return evidence("version %d of the legal file, by which it was decided, is not there: deleted; run kluis audit verify", r.FileVersion)
	case f.Digest() != r.LegalFile:
		return evidence("version %d of the legal file is correctly sealed, but not the one that the record names: there have been two of them", r.FileVersion)
	}
	e.File = f
	return nil
}

func (l *AuditLog) verifyLegalFile(sealed []byte, ean meter.EAN) (*authz.LegalFile, error) {
	f, err := l.Seals.LegalFile(sealed)
	if err == nil && f.EAN() != ean {
		err = fmt.Errorf("%w: it is of another metering point", authz.ErrSeal)
	}
	return f, err
}

// versions gives verified versions of the legal file after one, ascending, each
// following on the one before, until next says no.
func (l *AuditLog) versions(ctx context.Context, ean meter.EAN, last *authz.LegalFile, next func(*authz.LegalFile) (bool, error)) error {
	for {
		from := uint64(1)
		if last != nil {
			from = last.Version() + 1
		}
		page, err := l.LegalFiles(ctx, ean, from, filesPage)
		if err != nil || len(page) == 0 {
			return err
		}
		for _, sealed := range page {
			f, err := l.verifyLegalFile(sealed, ean)
			if err != nil {
				return evidence("legal file: a version after %d: %w", from-1, err)
			}
			if last == nil && f.Version() != 1 || last != nil && (f.Version() != last.Version()+1 || f.Previous() != last.Digest()) {
				return evidence("legal file: version %d does not follow on what is there of the ones before: a version was deleted or replaced; run kluis audit verify", f.Version())
			}
			last = f
			if more, err := next(f); err != nil || !more {
				return err
			}
		}
	}
}

// noRelation makes again the decision that the caller has nothing to do with
// the metering point. The record names no file: it must not tell whether there
// was one.
func (l *AuditLog) noRelation(ctx context.Context, e *Explanation) error {
	r := &e.Record
	err := l.versions(ctx, r.EAN, nil, func(f *authz.LegalFile) (bool, error) {
		if f.SealedAt().After(r.At) {
			return false, nil
		}
		e.File = f
		return true, nil
	})
	if err != nil {
		return err
	}
	e.Verdict = Agrees
	switch {
	case r.Outcome != audit.NoRelation:
		e.Verdict, e.Why = Differs, "The record names no legal file, but says that something was decided."
		return nil
	case e.File == nil:
		e.Why = "At that time the metering point had no legal file: it was unknown."
	case r.Employee != "":
		e.Why = "The employee was not sent for this or serves no customers, or asked about a supplier that has nothing to do with it."
	case !e.File.Relates(r.Supplier):
		e.Why = fmt.Sprintf("By version %d of the legal file, the newest then, the caller had never had anything to do with the metering point.", e.File.Version())
	case r.At.Sub(e.File.SealedAt()) <= storedWithin:
		e.Why = fmt.Sprintf("Version %d of the legal file, which knows the caller, was sealed only %s before: it was not stored yet.", e.File.Version(), r.At.Sub(e.File.SealedAt()))
	default:
		e.Verdict = Differs
		e.Why = fmt.Sprintf("By version %d of the legal file, sealed %s before, the caller had to do with the metering point.", e.File.Version(), r.At.Sub(e.File.SealedAt()).Round(time.Second))
	}
	e.Hindsight.File = e.File
	err = l.versions(ctx, r.EAN, e.File, func(f *authz.LegalFile) (bool, error) {
		e.Hindsight.File = f
		return true, nil
	})
	if errors.Is(err, ErrEvidence) {
		e.Hindsight.Problem = err.Error()
		return nil
	}
	return err
}

// decision is rulings by day.
type decision map[Ruling]meter.DaySet

func (d decision) add(r Ruling, days meter.DaySet) {
	if !days.Empty() {
		d[r] = d[r].Union(days)
	}
}

// decide makes the decision by a legal file, at a time. The error is
// authz.ErrNoRelation.
func (e *Explanation) decide(f *authz.LegalFile, at time.Time) (decision, error) {
	r, d := &e.Record, decision{}
	c := e.caller()
	if r.Operation == audit.DryRun {
		a, err := authz.DryRun(c, authz.AccessRequest{EAN: r.EAN, Purpose: r.Purpose, Days: r.Days, Fields: r.Fields}, f, e.Profile, at)
		if err != nil {
			return nil, err
		}
		for _, it := range a.Items() {
			d.add(Ruling{Purpose: it.Purpose, Field: it.Field, Given: true, Kind: it.Kind, Granularity: it.Granularity, Basis: it.Basis, Rule: it.Rule}, it.Days)
		}
		for _, w := range a.Withheld() {
			d.add(Ruling{Purpose: w.Purpose, Field: w.Field, Reason: w.Reason}, meter.NewDaySet(w.Days))
		}
		return d, nil
	}
	grant, withheld, err := authz.Decide(c, authz.Request{
		EAN: r.EAN, Purpose: r.Purpose, Days: r.Days, Fields: r.Fields, Resolution: r.Resolution, Kind: r.Kind,
	}, f, e.Profile, at)
	if err != nil {
		return nil, err
	}
	for _, g := range audit.GrantedItems(grant) {
		d.add(granted(r.Purpose, g), g.Days)
	}
	for _, w := range withheld {
		d.add(Ruling{Purpose: r.Purpose, Field: w.Field, Reason: w.Reason}, meter.NewDaySet(w.Days))
	}
	return d, nil
}

func granted(p meter.Purpose, g audit.Granted) Ruling {
	return Ruling{Purpose: p, Field: g.Field, Given: true, Kind: g.Kind, Granularity: g.Granularity, Basis: g.Basis, Rule: g.Rule}
}

// recorded is the decision as the record has it.
func recorded(r *audit.Record) decision {
	d := decision{}
	for _, g := range r.Granted {
		d.add(granted(r.Purpose, g), g.Days)
	}
	for _, w := range r.Withheld {
		d.add(Ruling{Purpose: r.Purpose, Field: w.Field, Reason: w.Reason}, meter.NewDaySet(w.Days))
	}
	return d
}

// split parts what is given from what is withheld.
func (d decision) split() (given, withheld decision) {
	given, withheld = decision{}, decision{}
	for r, days := range d {
		if r.Given {
			given[r] = days
		} else {
			withheld[r] = days
		}
	}
	return given, withheld
}

// daysOf are the days of a field that have a ruling.
func (d decision) daysOf(p meter.Purpose, f meter.FieldCode) (days meter.DaySet) {
	for r, set := range d {
		if r.Purpose == p && r.Field == f {
			days = days.Union(set)
		}
	}
	return days
}

// less is what is ruled but for the days that the other rules too, however.
func (d decision) less(other decision) decision {
	out := decision{}
	for r, days := range d {
		if days = days.Subtract(other.daysOf(r.Purpose, r.Field)); !days.Empty() {
			out[r] = days
		}
	}
	return out
}

// minus is what is ruled so here and not there.
func (d decision) minus(other decision) decision {
	out := decision{}
	for r, days := range d {
		if days = days.Subtract(other[r]); !days.Empty() {
			out[r] = days
		}
	}
	return out
}

func (d decision) plus(other decision) decision {
	out := decision{}
	for r, days := range d {
		out.add(r, days)
	}
	for r, days := range other {
		out.add(r, days)
	}
	return out
}

func lines(d decision) []Line {
	var out []Line
	for r, days := range d {
		out = append(out, Line{r, days})
	}
	sortLines(out)
	return out
}

func sortLines(out []Line) {
	slices.SortFunc(out, func(a, b Line) int {
		return cmp.Or(cmp.Compare(a.Purpose, b.Purpose), cmp.Compare(a.Field, b.Field), cmp.Compare(a.Days.Ranges()[0].From, b.Days.Ranges()[0].From),
			cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Granularity, b.Granularity), cmp.Compare(a.Rule, b.Rule))
	})
}

// differences pairs what differs, day by day.
func differences(then, other decision) []Difference {
	gone, come := then.minus(other), other.minus(then)
	var out []Difference
	for _, g := range lines(gone) {
		rest := g.Days
		for _, c := range lines(come) {
			if c.Purpose != g.Purpose || c.Field != g.Field {
				continue
			}
			if both := g.Days.Intersect(c.Days); !both.Empty() {
				out = append(out, Difference{both, &g.Ruling, &c.Ruling})
				rest = rest.Subtract(both)
			}
		}
		if !rest.Empty() {
			out = append(out, Difference{rest, &g.Ruling, nil})
		}
	}
	for _, c := range lines(come) {
		if rest := c.Days.Subtract(gone.daysOf(c.Purpose, c.Field)); !rest.Empty() {
			out = append(out, Difference{rest, nil, &c.Ruling})
		}
	}
	return out
}

// openingReasons are those for which a cryptoserver withholds what was granted
// because of what is stored.
var openingReasons = []meter.Reason{meter.FinerThanStored, meter.KindNotAvailable, meter.PartialPeriod, meter.Damaged, meter.Erased}

// compare holds the record against the decision made again.
func (e *Explanation) compare(then decision) error {
	r, was := &e.Record, recorded(&e.Record)
	if r.Operation == audit.DryRun {
		// The record of a dry run says no purposes (a rule is of one), and not
		// what is withheld.
		given, _ := then.split()
		e.Lines, e.Differences = lines(then), differences(plain(was), plain(given))
		e.judge()
		return nil
	}
	given, withheld := then.split()
	wasGiven, wasWithheld := was.split()
	e.Lines = lines(wasGiven.less(wasWithheld).plus(wasWithheld))
	expected := withheld
	// Where something was opened, a cryptoserver decided too, by its own clock,
	// and its word counted: withheld is what it withheld, by its decision or for
	// what is stored, and what else the gateway did.
	if e.Receipt != nil && r.Outcome != audit.Failed && len(differences(wasWithheld, withheld)) > 0 {
		second, err := e.decide(e.File, e.Receipt.At)
		if err != nil {
			return evidence("by the legal file that the record names, a cryptoserver cannot have opened anything")
		}
		_, later := second.split()
		expected = later.plus(withheld.less(later))
		stored := decision{}
		for ruling, days := range wasWithheld.minus(expected) {
			if slices.Contains(openingReasons, ruling.Reason) {
				stored[ruling] = days
			}
		}
		expected = expected.less(stored).plus(stored)
		e.OnOpening = lines(stored)
		for ruling, days := range later.minus(withheld) {
			days = days.Intersect(given.daysOf(ruling.Purpose, ruling.Field)).Intersect(wasWithheld[ruling])
			if !days.Empty() {
				e.Later = append(e.Later, Line{ruling, days})
			}
		}
		sortLines(e.Later)
	}
	e.Differences = differences(was, given.plus(expected))
	e.judge()
	return nil
}

// plain is a decision without purposes.
func plain(d decision) decision {
	out := decision{}
	for r, days := range d {
		r.Purpose = 0
		out.add(r, days)
	}
	return out
}

func (e *Explanation) judge() {
	e.Verdict = Agrees
	if len(e.Differences) > 0 {
		e.Verdict = Differs
	}
}

// hindsight makes the decision by the newest legal file, and finds the versions
// since that changed it.
func (l *AuditLog) hindsight(ctx context.Context, e *Explanation, then decision) error {
	r, h := &e.Record, &e.Hindsight
	h.File = e.File
	before := then
	err := l.versions(ctx, r.EAN, e.File, func(f *authz.LegalFile) (bool, error) {
		if f.Version() == e.File.Version()+1 && r.At.Sub(f.SealedAt()) > storedWithin {
			e.Verdict = Differs
			e.Why = fmt.Sprintf("It was decided by version %d of the legal file %s after version %d was sealed: an older file was presented.",
				e.File.Version(), r.At.Sub(f.SealedAt()).Round(time.Second), f.Version())
		}
		h.File = f
		now, err := e.decide(f, r.At)
		if err != nil {
			now = decision{} // no relation any more
		}
		if len(differences(before, now)) > 0 {
			h.Versions = append(h.Versions, f)
		}
		before = now
		return true, nil
	})
	if errors.Is(err, ErrEvidence) {
		h.Problem = err.Error()
		err = nil
	}
	h.Differences = differences(then, before)
	return err
}
