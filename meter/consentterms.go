package meter

import (
	"regexp"
	"slices"
	"strconv"

	"github.com/goccy/go-yaml/ast"
)

// ConsentTerms is what the market says of every consent. The zero value is
// that of a profile without rules on consent: no consent counts.
type ConsentTerms struct {
	AnswerDays    int            // days the customer has to answer a request
	LongestMonths int            // months for which a consent may count
	RevokedBy     []ConsentParty // ascending, the customer always among them; read only
	EndedByMove   bool           // a consent counts no more once the customer who gave it moved out
}

// MayRevoke says whether a consent may be revoked by the party.
func (t ConsentTerms) MayRevoke(by ConsentParty) bool { return slices.Contains(t.RevokedBy, by) }

// LongestUntil is the local day from whose start on a consent that began on
// the day given counts no more, whatever its own end says.
func (t ConsentTerms) LongestUntil(began Day) Day { return began.AddMonths(t.LongestMonths) }

// AnswerUntil is the local day from whose start on a request that was made on
// the day given has lapsed. The day itself does not count, so that the customer
// has whole days (Regulation (EEC, Euratom) No 1182/71, article 3).
func (t ConsentTerms) AnswerUntil(asked Day) Day { return asked + 1 + Day(t.AnswerDays) }

// ConsentParty is someone who takes part in a consent.
type ConsentParty uint8

// Never renumber.
const (
	CustomerParty ConsentParty = 1 // CUSTOMER: who gave it
	SupplierParty ConsentParty = 2 // SUPPLIER: who was given it
	OperatorParty ConsentParty = 3 // OPERATOR: who keeps the legal file
)

var consentPartyNames = []string{CustomerParty: "CUSTOMER", SupplierParty: "SUPPLIER", OperatorParty: "OPERATOR"}

func (p ConsentParty) String() string { return enumName(p, consentPartyNames, "ConsentParty") }

// ParseConsentParty reads "CUSTOMER", "SUPPLIER" or "OPERATOR".
func ParseConsentParty(s string) (ConsentParty, error) {
	return parseEnum[ConsentParty](s, consentPartyNames, "party")
}

var answerPattern = regexp.MustCompile(`^P([1-9][0-9]{0,2})D$`)

// maxAnswerDays is a year: a longer one is a slip.
const maxAnswerDays = 366

func (r *yamlReader) consentTerms(n ast.Node) ConsentTerms {
	m := r.mapping(n, []string{"answer_within", "longest_validity", "revoked_by", "ended_by_move"}, nil)
	if m == nil {
		return ConsentTerms{}
	}
	t := ConsentTerms{
		LongestMonths: r.months(m["longest_validity"], "longest_validity"),
		EndedByMove:   r.boolean(m["ended_by_move"]),
	}
	if s, ok := r.text(m["answer_within"]); ok {
		d := answerPattern.FindStringSubmatch(s)
		if d == nil {
			r.fail(m["answer_within"], "answer_within: want a number of days, such as P30D")
		} else if t.AnswerDays, _ = strconv.Atoi(d[1]); t.AnswerDays > maxAnswerDays {
			r.fail(m["answer_within"], "answer_within: at most %d days", maxAnswerDays)
		}
	}
	for _, p := range r.sequence(m["revoked_by"]) {
		party := parseNode(r, p, ParseConsentParty)
		if party != 0 && slices.Contains(t.RevokedBy, party) {
			r.fail(p, "party listed twice")
		}
		t.RevokedBy = append(t.RevokedBy, party)
	}
	if s, ok := m["revoked_by"].(*ast.SequenceNode); ok && len(s.Values) > 0 && !t.MayRevoke(CustomerParty) {
		r.fail(s, "who gave a consent may always take it back: CUSTOMER must be listed")
	}
	slices.Sort(t.RevokedBy)
	return t
}
