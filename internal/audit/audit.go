// Package audit is the access record: who asked for what, when, on which
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
	"time"

	"kluis/authz"
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
)

// ErrRecord is wrapped by every refusal of a record or its encoding.
var ErrRecord = errors.New("not an access record")

// Outcome says what came of a request.
type Outcome uint8

// The values are part of the encoding and of the access_log table: never
// renumber.
const (
	// Given: everything asked for was granted and answered.
	Given Outcome = 1
	// Partly: some of it, the rest is withheld with reasons.
	Partly Outcome = 2
	// Withheld: the caller has a basis, but nothing of what it asked for was
	// granted; nothing was opened.
	Withheld Outcome = 3
	// NoRelation: the metering point is unknown, or the caller has nothing to
	// do with it. The record does not tell which of the two.
	NoRelation Outcome = 4
	// Failed: the decision was made, but no answer left: rows could not be
	// fetched or opened. A receipt, if there is one, says what was opened.
	Failed Outcome = 5

	// A dry run asks what may be read, and opens nothing: its records have
	// outcomes of their own, so that nobody takes one for a reading, or misses
	// its receipt. Purpose 0 asks about every purpose.

	// DryRun: what may be read was told; Granted is what.
	DryRun Outcome = 6
	// DryRunNoRelation: as NoRelation.
	DryRunNoRelation Outcome = 7
	// DryRunFailed: no answer left.
	DryRunFailed Outcome = 8
)

// IsDryRun says whether nothing was to be opened.
func (o Outcome) IsDryRun() bool { return DryRun <= o && o <= DryRunFailed }

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
	case DryRun:
		return "dry_run"
	case DryRunNoRelation:
		return "dry_run_no_relation"
	case DryRunFailed:
		return "dry_run_failed"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Record is one access or refusal.
//
// For a list of metering points EAN is zero, and so are purpose, days and all
// that belongs to a decision. A record of a dry run has no receipt, and does
// not list what is withheld: that follows from the legal file and the profile
// it names.
type Record struct {
	InteractionID [16]byte  // of the answer; random
	At            time.Time // of the decision, by the gateway's clock; UTC, microseconds

	Supplier    meter.GLN
	TokenID     [32]byte // SHA-256 of the token's jti
	Certificate [32]byte // SHA-256 of the TLS client certificate's DER

	// What was asked for.
	EAN        meter.EAN
	Purpose    meter.Purpose
	Days       meter.DayRange
	Fields     []meter.FieldCode // as a set: encoded ascending, each once
	Resolution meter.Resolution  // 0: not said
	Kind       meter.Kind        // 0: not said

	Outcome Outcome

	// What was decided, on which evidence. All zero for NoRelation.
	LegalFile   [32]byte // digest of its payload
	FileVersion uint64
	Profile     [32]byte // digest of the market profile
	Granted     []Granted
	Withheld    []authz.Withheld

	// Receipt is the cryptoserver's, verbatim, and stored beside the record;
	// the encoding holds its SHA-256. Empty when nothing was opened.
	Receipt []byte
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
	w.I64(r.Supplier.Int64())
	w.Fixed(r.TokenID[:])
	w.Fixed(r.Certificate[:])
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
	if r.Supplier, err = meter.GLNFromInt64(rd.I64()); err != nil {
		rd.Refuse("no supplier")
	}
	rd.Fixed(r.TokenID[:])
	rd.Fixed(r.Certificate[:])
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

// check holds what Encode and Parse agree on.
func (r *Record) check() error {
	switch {
	case r.InteractionID == [16]byte{}:
		return errors.New("no interaction id")
	case r.At.IsZero() || r.At.UnixMicro() == 0:
		return errors.New("no time")
	case r.Supplier.IsZero():
		return errors.New("no supplier")
	case r.Outcome < Given || r.Outcome > DryRunFailed:
		return errors.New("unknown outcome")
	case len(r.Fields) > maxFields || len(r.Granted) > maxItems || len(r.Withheld) > maxWithheld || len(r.Receipt) > maxReceipt:
		return errors.New("too long")
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
	if (r.Outcome == NoRelation || r.Outcome == DryRunNoRelation) && (r.LegalFile != [32]byte{} || r.FileVersion != 0 ||
		len(r.Granted)+len(r.Withheld)+len(r.Receipt) > 0) {
		return errors.New("no relation, but it says something of the metering point")
	}
	if (r.Outcome == Given || r.Outcome == Partly) && len(r.Granted) > 0 && len(r.Receipt) == 0 {
		return errors.New("something was given, but there is no receipt of its opening")
	}
	if r.Outcome == Withheld && len(r.Granted)+len(r.Receipt) > 0 {
		return errors.New("all withheld, but something is granted")
	}
	if r.Outcome.IsDryRun() && (len(r.Receipt)+len(r.Withheld) > 0 || r.Resolution != 0 || r.Kind != 0 || r.EAN.IsZero()) {
		return errors.New("a dry run of no metering point, or with parts that only a reading has")
	}
	return nil
}
