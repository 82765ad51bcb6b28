// Package audit is the access record: who asked for what, when, why, on which
// evidence, and what came of it. One record is committed to the access log
// before an answer leaves, for refusals as well.
//
// A record has one canonical encoding ("kluis/access-record"), so that its
// digest can be logged elsewhere. It never holds a reading.
package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"kluis/authz"
	"kluis/cryptoserver/envelope"
	"kluis/internal/canonical"
	"kluis/meter"
)

const (
	domain  = "kluis/access-record"
	version = 1

	maxFields   = 256
	maxItems    = 4096
	maxRanges   = 512 // of one item: every second day of a year, and more
	maxWithheld = 1 << 14
	maxRule     = 64
	maxReceipt  = 4096
	maxText     = 128 // an employee's subject, or reason
)

// ErrRecord is wrapped by every refusal of a record or its encoding.
var ErrRecord = errors.New("not an access record")

// Operation says what was asked for.
type Operation uint8

// The values are part of the encoding: never renumber.
const (
	// Readings of a metering point.
	Readings Operation = 1
	// List of the caller's metering points. It names none.
	List Operation = 2
	// DryRun asks what may be read, and opens nothing. Purpose 0 asks about
	// every purpose.
	DryRun Operation = 3
	// Consents: those at a metering point, or one of them, were to be told.
	Consents Operation = 4
	// ConsentStep is a step in the life of a consent.
	ConsentStep Operation = 5
	// AccessLog: what was asked of a metering point was to be told to its
	// customer.
	AccessLog Operation = 6
	// Changes for the caller since a place in what was stored. It names no
	// metering point.
	Changes Operation = 7
	// Connection: what a metering point is, who lives there and who supplies it
	// was to be told to an employee.
	Connection Operation = 8
	// Find: the metering points at an address were to be told to an employee. A
	// record for each one that is there; without a metering point when none is,
	// or nothing was looked for.
	Find Operation = 9
	// Oversee: an employee looked at suppliers, health, or what was counted. It
	// names no metering point.
	Oversee Operation = 10
	// SupplierStep: a supplier was to be suspended, or resumed. It names no
	// metering point.
	SupplierStep Operation = 11
)

func (o Operation) String() string {
	switch o {
	case Readings:
		return "readings"
	case List:
		return "list"
	case DryRun:
		return "dry_run"
	case Consents:
		return "consents"
	case ConsentStep:
		return "consent_step"
	case AccessLog:
		return "access_log"
	case Changes:
		return "changes"
	case Connection:
		return "connection"
	case Find:
		return "find"
	case Oversee:
		return "oversee"
	case SupplierStep:
		return "supplier_step"
	}
	return fmt.Sprintf("Operation(%d)", uint8(o))
}

// Outcome says what came of a request.
type Outcome uint8

// The values are part of the encoding and of the access_log table: never
// renumber.
const (
	// Given: everything asked for was granted and answered; told, or done.
	Given Outcome = 1
	// Partly: some of it, the rest is withheld with reasons. Readings only.
	Partly Outcome = 2
	// Withheld: the caller has a basis, but nothing of what it asked for was
	// granted; nothing was opened. Readings only.
	Withheld Outcome = 3
	// NoRelation: the metering point or the consent is unknown, or the caller
	// has nothing to do with it. The record does not tell which of the two.
	NoRelation Outcome = 4
	// Failed: no answer left: rows could not be fetched or opened, a step could
	// not be sealed or stored. A receipt, if there is one, says what was opened.
	Failed Outcome = 5
	// Refused: a step that the facts or the market's rules do not let the
	// caller take now; an access log of an occupancy that is none.
	Refused Outcome = 6
	// Unchanged: the caller has the answer already, as it said; nothing was
	// opened. What is granted is what it was given before. Readings only.
	Unchanged Outcome = 7
)

func (o Outcome) String() string {
	switch o {
	case Given:
		return "given"
	case Partly:
		return "partly"
	case Withheld:
		return "withheld"
	case NoRelation:
		return "no_relation"
	case Failed:
		return "failed"
	case Refused:
		return "refused"
	case Unchanged:
		return "unchanged"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Record is one access or refusal. Which parts it has follows from its
// operation: Encode and Parse refuse all others.
//
//   - Readings have a metering point, purpose, days and fields; and what was
//     decided.
//   - A List, and Changes, have nothing but their caller, who is a supplier.
//   - A DryRun has a metering point, days and fields, and what was told to be
//     readable. It does not list what is withheld: that follows from the legal
//     file and the profile it names.
//   - Consents have a metering point, or the consent that was named, or both.
//   - A ConsentStep has an action, the consent's id, the consent's purpose
//     where it is known, and its metering point; neither of the last two where
//     the consent is unknown. One that would make a consent (request, register)
//     has no id when it made none.
//   - An AccessLog has an employee and a metering point, and for its days those
//     of the customer's occupancy whose requests were told: none when nothing
//     was told.
//   - A Connection has an employee and a metering point; a Find has an employee,
//     and a metering point where one is there. Of either a receipt says whether
//     a name or an address was opened: then the purpose is CUSTOMER_SERVICE.
//   - Oversee has an employee and nothing else.
//   - A SupplierStep has an employee, the supplier, whether it was to be
//     suspended, and the version of the supplier's record that it made, or found
//     to be so already.
type Record struct {
	InteractionID [16]byte  // of the answer; random
	At            time.Time // of the decision, by the gateway's clock; UTC, microseconds
	Operation     Operation

	Supplier    meter.GLN // the grid operator's own for an employee
	TokenID     [32]byte  // SHA-256 of the token's jti
	Certificate [32]byte  // SHA-256 of the TLS client certificate's DER
	// Employee is the subject of the token of an employee of the grid operator,
	// Reason what it gives: 1 to 128 printable bytes each. Both empty for a
	// supplier.
	Employee, Reason string

	// What was asked for.
	EAN        meter.EAN
	Purpose    meter.Purpose
	Days       meter.DayRange
	Fields     []meter.FieldCode // as a set: encoded ascending, each once
	Resolution meter.Resolution  // 0: not said
	Kind       meter.Kind        // 0: not said
	AsOf       time.Time         // readings as they were stored then; UTC, microseconds; zero: not said
	ConsentID  [16]byte
	Action     authz.ConsentAction // of a step

	// Of a SupplierStep.
	Target        meter.GLN
	Suspend       bool     // else resume
	TargetVersion uint64   // of the supplier's record, where the step is Given
	TargetDigest  [32]byte // of its payload

	Outcome Outcome

	// What was decided, on which evidence. All zero for NoRelation. Of a step
	// that was taken: the legal file it made.
	LegalFile   [32]byte // digest of its payload
	FileVersion uint64
	Profile     [32]byte // digest of the market profile
	Granted     []Granted
	Withheld    []authz.Withheld

	// Receipt is the cryptoserver's, verbatim, and stored beside the record;
	// the encoding holds its SHA-256. Empty when nothing was opened.
	Receipt []byte
}

// Opening is the receipt of the record: what a cryptoserver says that it opened.
// A receipt of anything else than the record tells is refused.
func (r *Record) Opening() (*envelope.Receipt, error) {
	rc, err := envelope.ParseReceipt(r.Receipt)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	if rc.InteractionID != r.InteractionID || rc.EAN != r.EAN || rc.Supplier != r.Supplier || rc.TokenID != r.TokenID || rc.Purpose != r.Purpose ||
		rc.LegalFile != r.LegalFile || rc.FileVersion != r.FileVersion || rc.Profile != r.Profile || !rc.OfEmployee(r.Employee, r.Reason) {
		return nil, fmt.Errorf("%w: its receipt is of something else", ErrRecord)
	}
	return &rc, nil
}

// Granted is one field on one basis.
type Granted struct {
	Field       meter.FieldCode
	Days        meter.DaySet
	Kind        meter.Kind
	Granularity meter.Resolution // finest that could leave
	Basis       meter.Basis
	Rule        string // of the market profile
}

// GrantedItems says in a record's terms what a Grant allows.
func GrantedItems(g authz.Grant) []Granted {
	items := g.Items()
	out := make([]Granted, len(items))
	for i, it := range items {
		out[i] = Granted{
			Field:       it.Spec.Field.Code,
			Days:        it.Spec.Days,
			Kind:        it.Spec.Kind,
			Granularity: it.Spec.Granularity,
			Basis:       it.Basis,
			Rule:        it.Rule,
		}
	}
	return out
}

// AccessItems says in a record's terms what a dry run told. The rule names the
// purpose.
func AccessItems(a authz.Access) []Granted {
	var out []Granted
	for _, it := range a.Items() {
		for runs := range slices.Chunk(it.Days.Ranges(), maxRanges) {
			out = append(out, Granted{
				Field: it.Field, Days: meter.NewDaySet(runs...), Kind: it.Kind, Granularity: it.Granularity, Basis: it.Basis, Rule: it.Rule,
			})
		}
	}
	return out
}

// Encode returns the canonical bytes. It refuses a record that Parse would
// refuse; in particular one of an unknown or foreign metering point that says
// anything of a legal file.
func (r Record) Encode() ([]byte, error) {
	r.Fields = slices.Clone(r.Fields)
	slices.Sort(r.Fields)
	r.Fields = slices.Compact(r.Fields)
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}

	w := canonical.New(domain, version)
	w.Fixed(r.InteractionID[:])
	w.Time(r.At)
	w.U8(uint8(r.Operation))
	w.I64(r.Supplier.Int64())
	w.Fixed(r.TokenID[:])
	w.Fixed(r.Certificate[:])
	w.String(r.Employee)
	w.String(r.Reason)
	w.I64(r.EAN.Int64())
	w.U8(uint8(r.Purpose))
	w.I32(int32(r.Days.From))
	w.I32(int32(r.Days.To))
	w.Count(len(r.Fields))
	for _, f := range r.Fields {
		w.U16(uint16(f))
	}
	w.U8(uint8(r.Resolution))
	w.U8(uint8(r.Kind))
	w.Time(r.AsOf)
	w.Fixed(r.ConsentID[:])
	w.U8(uint8(r.Action))
	if r.Operation == SupplierStep {
		w.I64(r.Target.Int64())
		w.Bool(r.Suspend)
		w.U64(r.TargetVersion)
		w.Fixed(r.TargetDigest[:])
	}
	w.U8(uint8(r.Outcome))
	w.Fixed(r.LegalFile[:])
	w.U64(r.FileVersion)
	w.Fixed(r.Profile[:])
	w.Count(len(r.Granted))
	for _, g := range r.Granted {
		w.U16(uint16(g.Field))
		runs := g.Days.Ranges()
		w.Count(len(runs))
		for _, d := range runs {
			w.I32(int32(d.From))
			w.I32(int32(d.To))
		}
		w.U8(uint8(g.Kind))
		w.U8(uint8(g.Granularity))
		w.U8(uint8(g.Basis))
		w.String(g.Rule)
	}
	w.Count(len(r.Withheld))
	for _, h := range r.Withheld {
		w.U16(uint16(h.Field))
		w.I32(int32(h.Days.From))
		w.I32(int32(h.Days.To))
		w.U8(uint8(h.Reason))
	}
	w.Bool(len(r.Receipt) > 0)
	if len(r.Receipt) > 0 {
		sum := sha256.Sum256(r.Receipt)
		w.Fixed(sum[:])
	}
	return w.Encoded(), nil
}

// Parse reads a record and the receipt stored beside it. It refuses everything
// Encode would not have written, and a receipt that is not the record's.
func Parse(record, receipt []byte) (Record, error) {
	r, err := parse(record, receipt)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, nil
}

func parse(record, receipt []byte) (Record, error) {
	rd, _, err := canonical.Open(record, domain, version)
	if err != nil {
		return Record{}, err
	}
	var r Record
	rd.Fixed(r.InteractionID[:])
	r.At = rd.Time()
	r.Operation = Operation(rd.U8())
	if r.Supplier, err = meter.GLNFromInt64(rd.I64()); err != nil {
		rd.Refuse("no supplier")
	}
	rd.Fixed(r.TokenID[:])
	rd.Fixed(r.Certificate[:])
	r.Employee = rd.String(maxText)
	r.Reason = rd.String(maxText)
	if n := rd.I64(); n != 0 {
		if r.EAN, err = meter.EANFromInt64(n); err != nil {
			rd.Refuse("no metering point")
		}
	}
	r.Purpose = meter.Purpose(rd.U8())
	r.Days = days(rd)
	if n := rd.Count(maxFields); n > 0 {
		r.Fields = make([]meter.FieldCode, n)
		for i := range r.Fields {
			r.Fields[i] = meter.FieldCode(rd.U16())
		}
	}
	r.Resolution = meter.Resolution(rd.U8())
	r.Kind = meter.Kind(rd.U8())
	r.AsOf = rd.Time()
	rd.Fixed(r.ConsentID[:])
	r.Action = authz.ConsentAction(rd.U8())
	if r.Operation == SupplierStep {
		if r.Target, err = meter.GLNFromInt64(rd.I64()); err != nil {
			rd.Refuse("no supplier to take a step of")
		}
		r.Suspend = rd.Bool()
		r.TargetVersion = rd.U64()
		rd.Fixed(r.TargetDigest[:])
	}
	r.Outcome = Outcome(rd.U8())
	rd.Fixed(r.LegalFile[:])
	r.FileVersion = rd.U64()
	rd.Fixed(r.Profile[:])
	for range rd.Count(maxItems) {
		g := Granted{Field: meter.FieldCode(rd.U16())}
		var runs []meter.DayRange
		for range rd.Count(maxRanges) {
			runs = append(runs, days(rd))
		}
		g.Days = meter.NewDaySet(runs...)
		if !slices.Equal(g.Days.Ranges(), runs) {
			rd.Refuse("days not in canonical form")
		}
		g.Kind = meter.Kind(rd.U8())
		g.Granularity = meter.Resolution(rd.U8())
		g.Basis = meter.Basis(rd.U8())
		g.Rule = rd.String(maxRule)
		if rd.Err() != nil {
			break
		}
		r.Granted = append(r.Granted, g)
	}
	for range rd.Count(maxWithheld) {
		h := authz.Withheld{Field: meter.FieldCode(rd.U16()), Days: days(rd), Reason: meter.Reason(rd.U8())}
		if rd.Err() != nil {
			break
		}
		r.Withheld = append(r.Withheld, h)
	}
	opened := rd.Bool()
	var sum [32]byte
	if opened {
		rd.Fixed(sum[:])
	}
	if err := rd.Close(); err != nil {
		return Record{}, err
	}
	if opened != (len(receipt) > 0) || opened && sha256.Sum256(receipt) != sum {
		return Record{}, errors.New("the receipt is not the record's")
	}
	if opened {
		r.Receipt = slices.Clone(receipt)
	}
	return r, r.check()
}

func days(rd *canonical.Reader) meter.DayRange {
	return meter.DayRange{From: meter.Day(rd.I32()), To: meter.Day(rd.I32())}
}

// outcomes says what may come of each operation.
var outcomes = [...][]Outcome{
	Readings:     {Given, Partly, Withheld, NoRelation, Failed, Unchanged},
	List:         {Given, Failed},
	DryRun:       {Given, NoRelation, Failed},
	Consents:     {Given, NoRelation, Failed},
	ConsentStep:  {Given, NoRelation, Failed, Refused},
	AccessLog:    {Given, NoRelation, Failed, Refused},
	Changes:      {Given, Failed},
	Connection:   {Given, NoRelation, Failed},
	Find:         {Given, NoRelation, Failed, Refused},
	Oversee:      {Given, Failed, Refused},
	SupplierStep: {Given, NoRelation, Failed, Refused},
}

// check holds what Encode and Parse agree on.
func (r *Record) check() error {
	switch {
	case r.InteractionID == [16]byte{}:
		return errors.New("no interaction id")
	case r.At.IsZero() || r.At.UnixMicro() == 0:
		return errors.New("no time")
	case r.Supplier.IsZero():
		return errors.New("no supplier")
	case r.Operation < Readings || r.Operation > SupplierStep:
		return errors.New("unknown operation")
	case !slices.Contains(outcomes[r.Operation], r.Outcome):
		return errors.New("no outcome of such an operation")
	case (r.Employee == "") != (r.Reason == ""):
		return errors.New("an employee and a reason come together")
	case r.Employee != "" && !(plainText(r.Employee) && plainText(r.Reason) && strings.TrimSpace(r.Reason) == r.Reason):
		return errors.New("employee or reason not 1 to 128 printable bytes, or the reason with a blank at an end")
	case len(r.Fields) > maxFields || len(r.Granted) > maxItems || len(r.Withheld) > maxWithheld || len(r.Receipt) > maxReceipt:
		return errors.New("too long")
	case r.Purpose > meter.CustomerService:
		return errors.New("unknown purpose")
	case r.Days != (meter.DayRange{}) && r.Days.Empty():
		return errors.New("days in reverse")
	}
	for i := 1; i < len(r.Fields); i++ {
		if r.Fields[i-1] >= r.Fields[i] {
			return errors.New("fields not ascending")
		}
	}
	for _, g := range r.Granted {
		if g.Days.Empty() || len(g.Days.Ranges()) > maxRanges || len(g.Rule) > maxRule {
			return errors.New("granted without days, or with too many runs of them, or with too long a rule")
		}
	}
	if r.Outcome == NoRelation && (r.LegalFile != [32]byte{} || r.FileVersion != 0 || len(r.Granted)+len(r.Withheld)+len(r.Receipt) > 0) {
		return errors.New("no relation, but it says something of the metering point")
	}
	return r.checkParts()
}

// checkParts refuses parts that the operation has not, and misses those it has.
func (r *Record) checkParts() error {
	var (
		decided = len(r.Granted)+len(r.Withheld)+len(r.Receipt) > 0
		reading = len(r.Fields) > 0 || r.Resolution != 0 || r.Kind != 0 || !r.AsOf.IsZero() || decided
		consent = r.ConsentID != [16]byte{}
		target  = !r.Target.IsZero() || r.Suspend || r.TargetVersion != 0 || r.TargetDigest != [32]byte{}
	)
	if target && r.Operation != SupplierStep {
		return errors.New("a step of a supplier in something else")
	}
	if r.Operation != Consents && consent && r.Operation != ConsentStep || (r.Action != 0) != (r.Operation == ConsentStep) {
		return errors.New("a consent or an action of something else than a step, or a step without")
	}
	switch r.Operation {
	case Readings:
		switch {
		case r.EAN.IsZero() || r.Purpose == 0 || r.Days.Empty():
			return errors.New("readings of no metering point, purpose or days")
		case (r.Outcome == Given || r.Outcome == Partly) && len(r.Granted) > 0 && len(r.Receipt) == 0:
			return errors.New("something was given, but there is no receipt of its opening")
		case r.Outcome == Withheld && len(r.Granted)+len(r.Receipt) > 0:
			return errors.New("all withheld, but something is granted")
		case r.Outcome == Unchanged && (len(r.Granted) == 0 || len(r.Receipt) > 0):
			return errors.New("unchanged, but nothing is granted, or something was opened")
		case !r.AsOf.IsZero() && (r.AsOf.UnixMicro() <= 0 || r.AsOf.After(r.At)):
			return errors.New("readings as of before 1970, or of the future")
		}
	case List, Changes:
		if r.Employee != "" || !r.EAN.IsZero() || r.Purpose != 0 || !r.Days.Empty() || reading ||
			r.LegalFile != [32]byte{} || r.FileVersion != 0 {
			return errors.New("a list or changes of an employee, or with parts they do not have")
		}
	case DryRun:
		switch {
		case r.EAN.IsZero() || r.Days.Empty():
			return errors.New("a dry run of no metering point or days")
		case len(r.Receipt)+len(r.Withheld) > 0 || r.Resolution != 0 || r.Kind != 0 || !r.AsOf.IsZero():
			return errors.New("a dry run with parts that only readings have")
		}
	case Consents:
		switch {
		case reading || r.Purpose != 0 || !r.Days.Empty():
			return errors.New("consents with parts that only readings have")
		case r.EAN.IsZero() && (!consent || r.Outcome == Given):
			return errors.New("consents of no metering point")
		}
	case ConsentStep:
		makes := r.Action == authz.ActionRegister || r.Action == authz.ActionRequest
		switch {
		case r.Action > authz.ActionRequest:
			return errors.New("unknown action")
		case reading || !r.Days.Empty():
			return errors.New("a step with parts that only readings have")
		case !consent && (!makes || r.Outcome == Given):
			return errors.New("a step of no consent")
		case r.EAN.IsZero() && (makes || r.Outcome != NoRelation && r.Outcome != Failed):
			return errors.New("a step at no metering point")
		case r.Outcome == Given && r.FileVersion == 0:
			return errors.New("a step taken that made no legal file")
		}
	case AccessLog:
		switch {
		case r.EAN.IsZero() || r.Employee == "":
			return errors.New("an access log of no metering point, or told to no employee")
		case reading || r.Purpose != 0:
			return errors.New("an access log with parts that only readings have")
		case r.Days.Empty() == (r.Outcome == Given):
			return errors.New("an access log of nobody's days, or of days though nothing was told")
		}
	case Connection, Find:
		asked := len(r.Fields) > 0 || r.Resolution != 0 || r.Kind != 0 || !r.AsOf.IsZero() || len(r.Granted)+len(r.Withheld) > 0 || !r.Days.Empty()
		switch {
		case r.Employee == "" || asked:
			return errors.New("a connection, or what was found, told to no employee, or with parts that only readings have")
		case r.EAN.IsZero() && (r.Operation == Connection || r.Outcome == Given || r.LegalFile != [32]byte{} || r.FileVersion != 0 || len(r.Receipt) > 0):
			return errors.New("a connection of no metering point, or a find that says something of none")
		case r.Purpose != 0 && r.Purpose != meter.CustomerService, len(r.Receipt) > 0 && r.Purpose == 0:
			return errors.New("a name or an address opened for another purpose, or for none")
		}
	case Oversee, SupplierStep:
		if r.Employee == "" || !r.EAN.IsZero() || r.Purpose != 0 || !r.Days.Empty() || reading || r.LegalFile != [32]byte{} || r.FileVersion != 0 {
			return errors.New("oversight by no employee, or with parts it does not have")
		}
		if made := r.TargetVersion != 0; r.Operation == SupplierStep &&
			(r.Target.IsZero() || made != (r.Outcome == Given) || made == (r.TargetDigest == [32]byte{})) {
			return errors.New("a step of no supplier, or without the record it made, or with one though nothing was done")
		}
	}
	return nil
}

// plainText says whether s is one line of 1 to maxText bytes of printable
// UTF-8.
func plainText(s string) bool {
	return s != "" && len(s) <= maxText && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}
