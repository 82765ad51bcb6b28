package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/cmd/kluis/backend"
	"kluis/internal/audit"
	"kluis/meter"
)

type explainCmd struct {
	target
	Interaction uuidFlag `help:"interactionId of the answer." required:"" placeholder:"UUID"`
	EAN         eanFlag  `help:"Metering point (EAN-18): needed for a request of the last seconds and of a stream of more than 1000; or to see one of many." name:"ean" placeholder:"EAN"`
	Profile     string   `help:"File of the market profile of that time; only where it is not stored." type:"existingfile" placeholder:"FILE"`
}

// Help says more than fits a line.
func (explainCmd) Help() string {
	return `Finds the access record of a request, proves it against the audit log, verifies the legal file and the market profile that it names, and decides again by them: for this caller, this request, at that time. Then it compares: AGREES, or DIFFERS and in what. It opens nothing and changes nothing; it logs in as kluis_auditor.

It also says what the same request at the same time would have been given by the legal file of today, where that is something else: after a supply or a move was corrected backdated, what was lawful when it was read stays so, and can be told from what is lawful by what is known now.

The interactionId is in every answer and in every problem. More: docs/EXPLAIN.md.

Example:
  kluis explain --state .demo --interaction 5f0c2c1e-6f0e-4a54-9f43-1c9a4f4a7a11

Exit codes: 0 the decision bears out, 1 there is no such record, 4 try again, 5 it does not bear out, or evidence is missing or was altered.`
}

func (c *explainCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	var profile []byte
	if c.Profile != "" {
		if profile, err = os.ReadFile(c.Profile); err != nil {
			return err
		}
	}
	l, err := backend.OpenAuditLog(ctx, conf)
	if err != nil {
		return err
	}
	found, err := l.Explain(ctx, c.Interaction.UUID, c.EAN.EAN, profile)
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	views := []explanationView{} // a list in JSON is never null
	clean := true
	for _, e := range found {
		views = append(views, explained(e))
		clean = clean && e.Clean()
	}
	if c.JSON {
		err = printJSON(s.out, views)
	} else {
		for i, v := range views {
			if i > 0 {
				fmt.Fprintf(s.out, "\n%s\n\n", strings.Repeat("-", 72))
			}
			err = errors.Join(err, v.print(s.out))
		}
	}
	if err == nil && !clean {
		err = errFindings
	}
	return err
}

// explanationView is what is printed of an explanation.
type explanationView struct {
	Interaction string         `json:"interactionId"`
	At          time.Time      `json:"at"`
	Supplier    string         `json:"supplier"` // GLN
	Name        string         `json:"supplierName,omitempty"`
	Employee    string         `json:"employee,omitempty"` // of the grid operator, and what for
	Reason      string         `json:"reason,omitempty"`
	About       string         `json:"about,omitempty"` // supplier of whom an employee asked what it may read
	Certificate string         `json:"certificate"`     // SHA-256
	EAN         string         `json:"ean,omitempty"`
	Request     requestView    `json:"request"`
	Outcome     string         `json:"outcome"`
	AuditLog    auditLogView   `json:"auditLog"`
	Opening     *openingView   `json:"opening,omitempty"`
	LegalFile   *fileView      `json:"legalFile,omitempty"`
	Profile     *profileView   `json:"profile,omitempty"`
	Facts       []factLine     `json:"facts"` // of the caller, by that legal file, about the days asked for
	Rules       []ruleView     `json:"rules"` // those that gave something
	Answer      []lineView     `json:"answer"`
	Verdict     string         `json:"verdict"`
	Why         string         `json:"why,omitempty"`
	Differences []changeView   `json:"differences"` // then: by the record; else: decided again
	Later       []lineView     `json:"laterByCryptoserver"`
	OnOpening   []lineView     `json:"withheldOnOpening"`
	Hindsight   *hindsightView `json:"hindsight,omitempty"` // only where it differs
}

type requestView struct {
	Operation  string   `json:"operation"`
	Step       string   `json:"step,omitempty"` // of which consent
	Consent    string   `json:"consentId,omitempty"`
	Target     string   `json:"target,omitempty"`  // the supplier of a step
	Purpose    string   `json:"purpose,omitempty"` // none: every purpose
	From       string   `json:"from,omitempty"`
	To         string   `json:"to,omitempty"` // exclusive
	Fields     []string `json:"fields"`
	Resolution string   `json:"resolution,omitempty"`
	Kind       string   `json:"kind,omitempty"`
	AsOf       string   `json:"asOf,omitempty"` // none: as they were stored when asked for
}

type auditLogView struct {
	Leaf     *int64     `json:"leaf,omitempty"` // none: not logged yet
	Leaves   int64      `json:"leaves,omitempty"`
	SignedAt *time.Time `json:"signedAt,omitempty"`
}

type openingView struct {
	Server   string    `json:"server"`
	Sequence uint64    `json:"sequence"`
	At       time.Time `json:"at"`
	Opened   uint32    `json:"blocksOpened"`
	Refused  uint32    `json:"blocksRefused"`
	Damaged  uint32    `json:"blocksDamaged"`
}

type fileView struct {
	Version  uint64    `json:"version"`
	SealedAt time.Time `json:"sealedAt"`
	Step     string    `json:"step"`
	Actor    string    `json:"actor"`
	Digest   string    `json:"digest"`
}

type profileView struct {
	Country   string     `json:"country"`
	Version   string     `json:"version"`
	Digest    string     `json:"digest"`
	FirstUsed *time.Time `json:"firstUsedAt,omitempty"`
}

type factLine struct {
	What string `json:"what"`
	daysView
	More string `json:"more,omitempty"`
}

type ruleView struct {
	ID   string `json:"id"`
	Text string `json:"text"`
}

// lineView is a run of days that fields of a purpose have one ruling on.
type lineView struct {
	Purpose string   `json:"purpose"`
	Fields  []string `json:"fields"`
	daysView
	rulingView
}

type rulingView struct {
	Given       bool   `json:"given"`
	Granularity string `json:"granularity,omitempty"`
	Kind        string `json:"kind,omitempty"`
	Basis       string `json:"basis,omitempty"`
	Rule        string `json:"rule,omitempty"`
	Reason      string `json:"reason,omitempty"`
	Why         string `json:"why,omitempty"`
}

type changeView struct {
	Purpose string   `json:"purpose,omitempty"`
	Fields  []string `json:"fields"`
	daysView
	Then *rulingView `json:"then,omitempty"` // none: not ruled on
	Else *rulingView `json:"else,omitempty"`
}

type hindsightView struct {
	Version   uint64       `json:"version"`
	SealedAt  time.Time    `json:"sealedAt"`
	Verdict   string       `json:"verdict"`
	ChangedBy []fileView   `json:"changedBy"`
	Changes   []changeView `json:"changes"`
	Problem   string       `json:"problem,omitempty"`
}

// reasonWords say what a reason means, to the operator.
var reasonWords = map[meter.Reason]string{
	meter.PurposeNotAvailable:         "no rule of the market is for this purpose",
	meter.NoSupply:                    "the caller did not supply on these days",
	meter.NotOccupied:                 "outside the occupancy of the customer that counts",
	meter.NoConsent:                   "no consent for this purpose, class and day",
	meter.ConsentRevoked:              "the consent was revoked",
	meter.ConsentExpired:              "the consent had ended",
	meter.OptedOut:                    "the customer had opted out of remote reading",
	meter.NotGrantedAtThisGranularity: "granted, but only coarser than asked for",
	meter.PartialPeriod:               "only whole calendar months are granted, and this is part of one",
	meter.PeriodInFuture:              "the day was not over",
	meter.PeriodTooOld:                "past the time readings are kept, or further back than a rule reaches",
	meter.FinerThanStored:             "stored, but coarser than asked for",
	meter.KindNotAvailable:            "no values of the kind asked for",
	meter.Damaged:                     "stored, but it did not open",
	meter.NotCoveredByRule:            "no rule for this purpose covers the class of fields, or the day",
	meter.Erased:                      "its data key was erased",
}

func explained(e *backend.Explanation) explanationView {
	r := &e.Record
	v := explanationView{
		Interaction: uuid.UUID(r.InteractionID).String(), At: r.At, Supplier: r.Supplier.String(), Name: e.Supplier,
		Certificate: hex.EncodeToString(r.Certificate[:]), Outcome: r.Outcome.String(), Verdict: string(e.Verdict), Why: e.Why,
		Employee: r.Employee, Reason: r.Reason,
		Request: requestView{Operation: r.Operation.String(), Fields: fieldNames(e, r.Fields)},
		Facts:   []factLine{}, Rules: []ruleView{}, Answer: lineViews(e, e.Lines), Differences: changeViews(e, e.Differences, e.File),
		Later: lineViews(e, e.Later), OnOpening: lineViews(e, e.OnOpening),
	}
	if !r.EAN.IsZero() {
		v.EAN = r.EAN.String()
	}
	if r.Action != 0 {
		v.Request.Step = r.Action.String()
	}
	if r.Operation == audit.SupplierStep {
		v.Request.Target, v.Request.Step = r.Target.String(), "resume"
		if r.Suspend {
			v.Request.Step = "suspend"
		}
	}
	if r.ConsentID != [16]byte{} {
		v.Request.Consent = uuid.UUID(r.ConsentID).String()
	}
	if !r.Days.Empty() {
		v.Request.From, v.Request.To = r.Days.From.String(), r.Days.To.String()
	}
	if !e.Behalf.IsZero() {
		v.About = e.Behalf.String()
	}
	if r.Purpose != 0 {
		v.Request.Purpose = r.Purpose.String()
	}
	if r.Resolution != 0 {
		v.Request.Resolution = r.Resolution.String()
	}
	if r.Kind != 0 {
		v.Request.Kind = r.Kind.String()
	}
	if !r.AsOf.IsZero() {
		v.Request.AsOf = r.AsOf.Format(time.RFC3339Nano)
	}
	if e.Leaf >= 0 {
		v.AuditLog.Leaf = &e.Leaf
	}
	if e.Signed > 0 {
		v.AuditLog.Leaves, v.AuditLog.SignedAt = e.Signed, &e.At
	}
	if rc := e.Receipt; rc != nil {
		v.Opening = &openingView{rc.ServerID, rc.Sequence, rc.At, rc.Opened, rc.Refused, rc.Damaged}
	}
	if e.Profile != nil {
		id := e.Profile.ID()
		v.Profile = &profileView{Country: id.Country, Version: id.Version, Digest: hex.EncodeToString(id.Digest[:])}
		if !e.FirstUsed.IsZero() {
			v.Profile.FirstUsed = &e.FirstUsed
		}
		v.Rules = rulesOf(e)
	}
	if e.File != nil {
		v.LegalFile = new(fileOf(e.File))
		v.Facts = factLines(e, e.File)
	}
	if h := e.Hindsight; h.Problem != "" || len(h.Differences) > 0 {
		v.Hindsight = &hindsightView{
			Version: h.File.Version(), SealedAt: h.File.SealedAt(), Verdict: hindsightVerdict(e), Problem: h.Problem,
			Changes: changeViews(e, h.Differences, h.File), ChangedBy: []fileView{},
		}
		for _, f := range h.Versions {
			v.Hindsight.ChangedBy = append(v.Hindsight.ChangedBy, fileOf(f))
		}
	}
	return v
}

// hindsightVerdict says what the newest legal file means for what was given.
func hindsightVerdict(e *backend.Explanation) string {
	h := e.Hindsight
	lost, revoked := false, true
	for _, d := range h.Differences {
		if d.Then == nil || !d.Then.Given || d.Else != nil && d.Else.Given {
			continue
		}
		lost = true
		revoked = revoked && d.Else != nil && d.Else.Reason == meter.ConsentRevoked
	}
	then := fmt.Sprintf("by version %d sealed at %s", e.File.Version(), e.File.SealedAt().Format(time.RFC3339))
	now := fmt.Sprintf("by version %d sealed at %s", h.File.Version(), h.File.SealedAt().Format(time.RFC3339))
	switch {
	case len(h.Differences) == 0:
		return ""
	case e.Verdict == backend.Differs:
		return fmt.Sprintf("Decided again %s, this is what is different from the decision %s:", now, then)
	case lost && revoked:
		return fmt.Sprintf("Lawful when read, %s; the consent was revoked since, %s:", then, now)
	case lost:
		return fmt.Sprintf("Lawful when read, %s; %s it would not be:", then, now)
	default:
		return fmt.Sprintf("Lawful when read, %s, and still; but %s the answer would be another:", then, now)
	}
}

func fileOf(f *authz.LegalFile) fileView {
	digest := f.Digest()
	return fileView{Version: f.Version(), SealedAt: f.SealedAt(), Step: stepText(f.Step()), Actor: actorText(f.Actor()), Digest: hex.EncodeToString(digest[:])}
}

// actorText names no party: what is printed may be shown to another.
func actorText(a authz.Actor) string {
	if a.Kind == authz.ByOperator {
		return a.String()
	}
	return "the " + a.Kind.String()
}

// stepText says what a step did, without naming a party.
func stepText(s authz.Step) string {
	switch s := s.(type) {
	case authz.Register:
		return "registered"
	case authz.SetOccupancy:
		return "set occupancy " + span(s.Days)
	case authz.SetSupply:
		return "set supply " + span(s.Days)
	case authz.GrantConsent:
		return "granted consent " + uuid.UUID(s.ID).String()
	case authz.RequestConsent:
		return "asked for consent " + uuid.UUID(s.ID).String()
	case authz.AcceptConsent:
		return "accepted consent " + uuid.UUID(s.ID).String()
	case authz.RejectConsent:
		return "rejected consent " + uuid.UUID(s.ID).String()
	case authz.CorrectSupply:
		if s.Supplier.IsZero() {
			return "corrected supply: nobody " + span(s.Days)
		}
		return "corrected supply " + span(s.Days)
	case authz.CorrectMove:
		return fmt.Sprintf("corrected a move: it was not on %s but on %s", s.Was, s.Is)
	case authz.RevokeConsent:
		return "revoked consent " + uuid.UUID(s.ID).String()
	case authz.SetOptOut:
		return "opted out " + span(s.Days)
	case authz.EndOptOut:
		return "opted in again from " + s.From.String()
	}
	return strings.TrimPrefix(fmt.Sprintf("%T", s), "authz.")
}

func span(d meter.DayRange) string {
	if d.To == meter.MaxDay {
		return "from " + d.From.String()
	}
	return d.From.String() + " to " + d.To.String()
}

func fieldNames(e *backend.Explanation, codes []meter.FieldCode) []string {
	out := []string{}
	for _, c := range codes {
		out = append(out, fieldName(e, c))
	}
	return out
}

func fieldName(e *backend.Explanation, c meter.FieldCode) string {
	if e.Profile != nil {
		if f, ok := e.Profile.FieldByCode(c); ok {
			return f.Name
		}
	}
	return fmt.Sprintf("field %d", c)
}

// factLines lists what the legal file says of the caller and of the customers
// about the days asked for.
func factLines(e *backend.Explanation, f *authz.LegalFile) []factLine {
	r := &e.Record
	near := meter.DayRange{From: r.Days.From - 1, To: r.Days.To + 1} // switches and moves are boundaries
	out := []factLine{}
	for _, s := range f.SupplyPeriods() {
		if s.Supplier == e.About() && !s.Days.Intersect(near).Empty() {
			by := "by the caller"
			if !e.Behalf.IsZero() {
				by = "by the supplier asked about"
			}
			out = append(out, factLine{"supply", days(s.Days), by})
		}
	}
	for _, o := range f.Occupancies() {
		if !o.Days.Intersect(near).Empty() {
			out = append(out, factLine{"occupancy", days(o.Days), ""})
		}
	}
	for _, c := range f.Consents() {
		if c.Supplier != e.About() || c.Days.Intersect(near).Empty() || r.Purpose != 0 && c.Purpose != r.Purpose {
			continue
		}
		out = append(out, factLine{"consent", days(c.Days), consentText(e, f, c)})
	}
	for _, o := range f.OptOuts() {
		if !o.Intersect(near).Empty() {
			out = append(out, factLine{"opted out", days(o), ""})
		}
	}
	return out
}

func consentText(e *backend.Explanation, f *authz.LegalFile, c authz.Consent) string {
	text := fmt.Sprintf("%s: %s %s %v, of the customer since %s, valid until %s, evidence %q", uuid.UUID(c.ID), c.Purpose, c.Granularity, c.Classes,
		c.Occupancy, c.ValidUntil.Format(time.RFC3339), c.Evidence)
	if e.Profile != nil {
		text += "; then " + f.Standing(&c, e.Profile, e.Record.At).String()
	}
	return text
}

// rulesOf says what the rules are that gave something.
func rulesOf(e *backend.Explanation) []ruleView {
	named := map[string]bool{}
	for _, l := range e.Lines {
		named[l.Rule] = true
	}
	for _, d := range e.Differences {
		for _, r := range []*backend.Ruling{d.Then, d.Else} {
			if r != nil {
				named[r.Rule] = true
			}
		}
	}
	out := []ruleView{}
	for p := meter.Billing; p <= meter.CustomerService; p++ {
		for _, r := range e.Profile.Rules(p) {
			if !named[r.ID] {
				continue
			}
			text := fmt.Sprintf("%s for %s: %v at %s, days %s", r.Basis, r.Purpose, r.Classes, r.Granularity, span(r.Days))
			if r.On != meter.AllDays {
				text += fmt.Sprintf(", the reads of %s only", r.On)
			}
			if r.Lookback > 0 {
				text += fmt.Sprintf(", %d months back", r.Lookback)
			}
			if r.RequiresSupply {
				text += ", days of the caller's supply"
			}
			if r.DespiteOptOut {
				text += ", also where the customer opted out"
			}
			out = append(out, ruleView{r.ID, text})
		}
	}
	return out
}

// ruled says a ruling in words, by a legal file.
func ruled(e *backend.Explanation, r *backend.Ruling, on meter.DaySet, f *authz.LegalFile) *rulingView {
	if r == nil {
		return nil
	}
	if r.Given {
		v := &rulingView{Given: true, Granularity: r.Granularity.String(), Kind: r.Kind.String(), Basis: r.Basis.String(), Rule: r.Rule}
		v.Why = "on " + v.Basis + " by rule " + v.Rule
		if r.Basis == meter.Consent {
			v.Why += consentsOf(e, r, on, f)
		}
		return v
	}
	v := &rulingView{Reason: r.Reason.String(), Why: reasonWords[r.Reason]}
	switch r.Reason {
	case meter.ConsentRevoked, meter.ConsentExpired:
		v.Why += consentsOf(e, r, on, f)
	}
	return v
}

// consentsOf names the caller's consents that bear on a ruling.
func consentsOf(e *backend.Explanation, r *backend.Ruling, on meter.DaySet, f *authz.LegalFile) string {
	if f == nil || e.Profile == nil {
		return ""
	}
	field, _ := e.Profile.FieldByCode(r.Field)
	var ids []string
	for _, c := range f.Consents() {
		stands := f.Standing(&c, e.Profile, e.Record.At)
		switch {
		case c.Supplier != e.About() || c.Purpose != r.Purpose || !slices.Contains(c.Classes, field.Class):
		case on.Intersect(meter.NewDaySet(c.Days)).Empty(), r.Given != (stands == authz.StandsActive), r.Reason == meter.ConsentRevoked && stands != authz.StandsRevoked:
		case stands == authz.StandsRevoked:
			ids = append(ids, fmt.Sprintf("%s, revoked %s", uuid.UUID(c.ID), c.Revoked.At.Format(time.RFC3339)))
		default:
			ids = append(ids, fmt.Sprintf("%s, %s", uuid.UUID(c.ID), stands))
		}
	}
	if len(ids) == 0 {
		return ""
	}
	return ", consent " + strings.Join(ids, "; ")
}

// lineViews joins the fields that have the same ruling on the same days.
func lineViews(e *backend.Explanation, lines []backend.Line) []lineView {
	out := []lineView{}
	for _, l := range lines {
		for _, run := range l.Days.Ranges() {
			v := lineView{l.Purpose.String(), []string{fieldName(e, l.Field)}, days(run), *ruled(e, &l.Ruling, meter.NewDaySet(run), e.File)}
			i := slices.IndexFunc(out, func(o lineView) bool {
				return o.Purpose == v.Purpose && o.daysView == v.daysView && o.rulingView == v.rulingView
			})
			if i >= 0 {
				out[i].Fields = append(out[i].Fields, v.Fields[0])
				continue
			}
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b lineView) int {
		return cmp.Or(cmp.Compare(a.Purpose, b.Purpose), cmp.Compare(a.From, b.From))
	})
	return out
}

// changeViews is the same of differences; those of legal file f are what else
// it would be.
func changeViews(e *backend.Explanation, list []backend.Difference, f *authz.LegalFile) []changeView {
	out := []changeView{}
	for _, d := range list {
		r := d.Then
		if r == nil {
			r = d.Else
		}
		for _, run := range d.Days.Ranges() {
			on := meter.NewDaySet(run)
			v := changeView{Fields: []string{fieldName(e, r.Field)}, daysView: days(run), Then: ruled(e, d.Then, on, e.File), Else: ruled(e, d.Else, on, f)}
			if r.Purpose != 0 {
				v.Purpose = r.Purpose.String()
			}
			i := slices.IndexFunc(out, func(o changeView) bool {
				return o.Purpose == v.Purpose && o.daysView == v.daysView && sameRuling(o.Then, v.Then) && sameRuling(o.Else, v.Else)
			})
			if i >= 0 {
				out[i].Fields = append(out[i].Fields, v.Fields[0])
				continue
			}
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b changeView) int {
		return cmp.Or(cmp.Compare(a.Purpose, b.Purpose), cmp.Compare(a.From, b.From))
	})
	return out
}

func sameRuling(a, b *rulingView) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func (r *rulingView) String() string {
	switch {
	case r == nil:
		return "nothing"
	case r.Given:
		return fmt.Sprintf("given %s %s", r.Granularity, r.Kind)
	}
	return "withheld " + r.Reason
}

func (v *explanationView) print(w io.Writer) error {
	who := v.Supplier
	if v.Name != "" {
		who = v.Name + " (" + v.Supplier + ")"
	}
	fmt.Fprintf(w, "Interaction %s, %s\n", v.Interaction, v.At.Format(time.RFC3339Nano))
	if v.Employee != "" {
		who = fmt.Sprintf("Employee %q, because %q:", v.Employee, v.Reason)
	}
	switch v.Request.Operation {
	case audit.Readings.String(), audit.DryRun.String():
		ask := "asked for"
		if v.Request.Operation == audit.DryRun.String() {
			ask = "asked what may be read of"
			if v.About != "" {
				ask = "asked what " + v.About + " may read of"
			}
		}
		purpose := cmp.Or(v.Request.Purpose, "any purpose")
		fmt.Fprintf(w, "  %s %s %s for %s, %s to %s", who, ask, v.EAN, purpose, v.Request.From, v.Request.To)
		if v.Request.Resolution != "" {
			fmt.Fprintf(w, ", at %s", v.Request.Resolution)
		}
		if v.Request.Kind != "" {
			fmt.Fprintf(w, ", %s", v.Request.Kind)
		}
		if v.Request.AsOf != "" {
			fmt.Fprintf(w, ", as stored at %s", v.Request.AsOf)
		}
		if len(v.Request.Fields) > 0 {
			fmt.Fprintf(w, ":\n  %s", strings.Join(v.Request.Fields, ", "))
		}
		fmt.Fprintln(w, ".")
	default:
		fmt.Fprintf(w, "  %s %s.\n", who, v.did())
	}
	fmt.Fprintf(w, "  Outcome: %s. Certificate sha256 %s...\n", strings.ReplaceAll(v.Outcome, "_", " "), v.Certificate[:16])
	if o := v.Opening; o != nil {
		fmt.Fprintf(w, "  Opened by %s at %s (receipt %d): %d blocks", o.Server, o.At.Format(time.RFC3339Nano), o.Sequence, o.Opened)
		if o.Refused+o.Damaged > 0 {
			fmt.Fprintf(w, ", %d refused, %d damaged", o.Refused, o.Damaged)
		}
		fmt.Fprintln(w, ".")
	}
	switch l := v.AuditLog; {
	case l.SignedAt != nil:
		fmt.Fprintf(w, "  Record: leaf %d of the audit log, proven against the checkpoint of %s leaves signed at %s.\n", *l.Leaf, thousands(int(l.Leaves)), l.SignedAt.Format(time.RFC3339))
	case l.Leaf != nil:
		fmt.Fprintf(w, "  Record: leaf %d of the audit log, not signed yet.\n", *l.Leaf)
	default:
		fmt.Fprintln(w, "  Record: not in the audit log yet; nothing but the database vouches for it.")
	}

	switch v.Verdict {
	case string(backend.Agrees):
		fmt.Fprint(w, "\nAGREES: decided again on this evidence, the answer is the same.")
	case string(backend.Differs):
		fmt.Fprint(w, "\nDIFFERS: this evidence does not give what was recorded.")
	default:
		fmt.Fprint(w, "\nNOT DECIDED.")
	}
	if v.Why != "" {
		fmt.Fprint(w, " ", v.Why)
	}
	fmt.Fprintln(w)
	if err := printChanges(w, v.Differences, "RECORDED", "DECIDED AGAIN"); err != nil {
		return err
	}
	if h := v.Hindsight; h != nil {
		if h.Verdict != "" {
			fmt.Fprintf(w, "\nTODAY: %s\n", h.Verdict)
		}
		if err := printChanges(w, h.Changes, "THEN", "BY TODAY'S FILE"); err != nil {
			return err
		}
		for _, f := range h.ChangedBy {
			fmt.Fprintf(w, "  changed by version %d, sealed at %s: %s, by %s\n", f.Version, f.SealedAt.Format(time.RFC3339), f.Step, f.Actor)
		}
		if h.Problem != "" {
			fmt.Fprintf(w, "\nFINDING: later versions: %s\n", h.Problem)
		}
	}

	if v.LegalFile != nil || v.Profile != nil {
		fmt.Fprintln(w, "\nDecided by")
	}
	if f := v.LegalFile; f != nil {
		fmt.Fprintf(w, "  legal file version %d, sealed at %s (%s, by %s)\n", f.Version, f.SealedAt.Format(time.RFC3339), f.Step, f.Actor)
	}
	if p := v.Profile; p != nil {
		used := "given by hand"
		if p.FirstUsed != nil {
			used = "in use since " + p.FirstUsed.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "  market profile %s %s (sha256 %s...), %s\n", p.Country, p.Version, p.Digest[:16], used)
	}
	for _, r := range v.Rules {
		fmt.Fprintf(w, "    rule %s: %s\n", r.ID, r.Text)
	}
	if len(v.Facts) > 0 {
		fmt.Fprintln(w, "\nFacts of that legal file about these days")
		rows := make([][]string, len(v.Facts))
		for i, f := range v.Facts {
			rows[i] = []string{"  " + f.What, f.From, orOpen(f.To), f.More}
		}
		if err := table(w, rows); err != nil {
			return err
		}
	}
	if len(v.Answer) > 0 {
		fmt.Fprintln(w, "\nAnswered")
		if err := printLines(w, v.Answer, v.Request.Purpose == ""); err != nil {
			return err
		}
	}
	if len(v.Later) > 0 {
		fmt.Fprintln(w, "\nGranted by the gateway and withheld by the cryptoserver, which decided later by its own clock; its word counted")
		if err := printLines(w, v.Later, false); err != nil {
			return err
		}
	}
	if len(v.OnOpening) > 0 {
		fmt.Fprintln(w, "\nGranted, and withheld for what was stored")
		if err := printLines(w, v.OnOpening, false); err != nil {
			return err
		}
	}
	return nil
}

// stepWords say what a step of a consent did, and what was tried where it was
// not taken.
var stepWords = map[string][2]string{
	authz.ActionRequest.String():  {"asked for", "ask for"},
	authz.ActionRegister.String(): {"registered", "register"},
	authz.ActionGrant.String():    {"granted", "grant"},
	authz.ActionReject.String():   {"rejected", "reject"},
	authz.ActionRevoke.String():   {"revoked", "revoke"},
}

// did says what a request was that asked for no readings.
func (v *explanationView) did() string {
	what := "a consent"
	if v.Request.Consent != "" {
		what = "consent " + v.Request.Consent
	}
	at := ""
	if v.EAN != "" {
		at = " at " + v.EAN
	}
	given := v.Outcome == audit.Given.String()
	switch v.Request.Operation {
	case audit.ConsentStep.String():
		words := stepWords[v.Request.Step]
		if given {
			return words[0] + " " + what + at
		}
		return "tried to " + words[1] + " " + what + at + ", and did not"
	case audit.Consents.String():
		if v.Request.Consent == "" {
			what = "the consents"
		}
		return looked(given) + what + at
	case audit.AccessLog.String():
		return looked(given) + "the access log" + at
	case audit.Changes.String():
		return looked(given) + "the changes for the caller"
	case audit.Connection.String():
		return looked(given) + "the connection" + at
	case audit.Find.String():
		if v.EAN == "" {
			return "looked for an address, and found no metering point"
		}
		return "looked for an address, and found " + v.EAN
	case audit.Oversee.String():
		return looked(given) + "suppliers, health or oversight"
	case audit.SupplierStep.String():
		if given {
			return strings.TrimSuffix(v.Request.Step, "e") + "ed supplier " + v.Request.Target
		}
		return "tried to " + v.Request.Step + " supplier " + v.Request.Target + ", and did not"
	}
	return "listed the caller's metering points"
}

func looked(given bool) string {
	if given {
		return "looked at "
	}
	return "tried to look at "
}

func orOpen(day string) string {
	if day == "" {
		return "open"
	}
	return day
}

func printLines(w io.Writer, lines []lineView, purposes bool) error {
	rows := [][]string{}
	for _, l := range lines {
		row := []string{"  " + l.From, orOpen(l.To), strings.Join(l.Fields, ", "), l.rulingView.String(), l.Why}
		if purposes {
			row = slices.Insert(row, 2, l.Purpose)
		}
		rows = append(rows, row)
	}
	return table(w, rows)
}

func printChanges(w io.Writer, list []changeView, then, other string) error {
	if len(list) == 0 {
		return nil
	}
	rows := [][]string{{"  FROM", "TO", "FIELDS", then, other, "WHY"}}
	for _, c := range list {
		why := ""
		if c.Else != nil {
			why = c.Else.Why
		}
		rows = append(rows, []string{"  " + c.From, orOpen(c.To), strings.Join(c.Fields, ", "), c.Then.String(), c.Else.String(), why})
	}
	return table(w, rows)
}
