package authn

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/strictjson"
	"kluis/meter"
)

// MaxErrand bounds the authorization_details of a token, in bytes.
const MaxErrand = 4 << 10

const (
	maxText    = 128 // bytes, of a subject, a reason, and evidence
	typePrefix = "urn:kluis:errand:"
)

// ErrandTypes are the types of authorization details there are (RFC 9396).
func ErrandTypes() []string {
	var types []string
	for _, k := range authz.ErrandKinds() {
		types = append(types, typePrefix+k.String())
	}
	return types
}

// ErrErrand is wrapped by every error of ParseErrand. Its text says what to do,
// in the characters of an error_description (RFC 6749, clause 5.2), and holds
// nothing of the errand.
var ErrErrand = errors.New("authorization_details not accepted")

func badErrand(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrErrand}, args...)...)
}

// ParseErrand reads authorization_details (RFC 9396, clause 2): an array of one
// object, with the members of its type and no others, none of them twice.
//
//	{"type": "urn:kluis:errand:readings", "ean", "from", "to", "fields": [...], "reason"}
//	{"type": "urn:kluis:errand:view", "ean", "reason"}
//	{"type": "urn:kluis:errand:step", "ean", "step": "register|grant|reject|revoke",
//	  "consent_id" (not to register), "scope_digest", "evidence" (to register and to grant), "reason"}
//	{"type": "urn:kluis:errand:find", "postcode", "house_number", "reason"}
//	{"type": "urn:kluis:errand:oversee", "reason"}
//	{"type": "urn:kluis:errand:supplier", "gln", "step": "suspend|resume", "reason"}
//
// Days are local, to is exclusive; fields are named as in the profile;
// scope_digest is base64url of the digest of authz.Consent's scope; postcode and
// house_number are written as the market does, one way only.
func ParseErrand(b []byte, p *meter.Profile) (authz.Errand, error) {
	var none authz.Errand
	if len(b) > MaxErrand {
		return none, badErrand("it must not exceed %d bytes", MaxErrand)
	}
	m, err := oneObject(b)
	if err != nil {
		return none, badErrand("it must be a JSON array of exactly one object, with no member twice")
	}
	r := errandReader{members: m}
	var e authz.Errand
	kind, ok := strings.CutPrefix(r.word("type"), typePrefix)
	if e.Kind, err = authz.ParseErrandKind(kind); !ok || err != nil {
		return none, badErrand("type must be %s and readings, view, step, find, oversee or supplier", typePrefix)
	}
	if e.Kind.OfPoint() {
		if e.EAN, err = meter.ParseEAN(r.word("ean")); err != nil {
			r.fail("ean must be an EAN-18 of a metering point, as a string")
		}
	}
	e.Reason = r.line("reason")
	switch e.Kind {
	case authz.ErrandReadings:
		r.readings(&e, p)
	case authz.ErrandStep:
		r.step(&e)
	case authz.ErrandFind:
		r.find(&e, p)
	case authz.ErrandSupplier:
		r.supplier(&e)
	}
	if r.err == nil && len(r.members) > 0 {
		r.fail("there is a member that its type does not have")
	}
	if r.err != nil {
		return none, r.err
	}
	return e, nil
}

// errandReader takes members out, so that what is left is unknown. Its error is
// the first.
type errandReader struct {
	members map[string]json.RawMessage
	err     error
}

func (r *errandReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = badErrand(format, args...)
	}
}

func (r *errandReader) take(name string) json.RawMessage {
	v := r.members[name]
	delete(r.members, name)
	return v
}

// word is a string, "" when it is missing or no string.
func (r *errandReader) word(name string) string {
	s, _ := text(r.take(name))
	return s
}

func (r *errandReader) line(name string) string {
	s := r.word(name)
	if !plainText(s) || strings.TrimSpace(s) != s {
		r.fail("%s must be one line of 1 to %d printable bytes, without a blank at either end", name, maxText)
	}
	return s
}

func (r *errandReader) day(name string) meter.Day {
	d, err := meter.ParseDay(r.word(name))
	if err != nil {
		r.fail("%s must be a local day, YYYY-MM-DD", name)
	}
	return d
}

func (r *errandReader) readings(e *authz.Errand, p *meter.Profile) {
	e.Days = meter.DayRange{From: r.day("from"), To: r.day("to")}
	if e.Days.Empty() || e.Days.Len() > authz.MaxRequestDays {
		r.fail("from to to must be 1 to %d days; to is exclusive", authz.MaxRequestDays)
	}
	var names []json.RawMessage
	if json.Unmarshal(r.take("fields"), &names) != nil || len(names) == 0 {
		r.fail("fields must be an array of names, one at least")
		return
	}
	for _, v := range names {
		name, _ := text(v)
		f, ok := p.Field(name)
		if !ok {
			r.fail("fields names one that the market profile does not have")
			return
		}
		e.Fields = append(e.Fields, f.Code)
	}
	slices.Sort(e.Fields)
	if len(slices.Compact(slices.Clone(e.Fields))) != len(e.Fields) {
		r.fail("fields names one twice")
	}
}

func (r *errandReader) step(e *authz.Errand) {
	var err error
	if e.Action, err = authz.ParseConsentAction(r.word("step")); err != nil || e.Action == authz.ActionRequest {
		r.fail("step must be register, grant, reject or revoke")
	}
	if e.Action != authz.ActionRegister {
		s := r.word("consent_id")
		id, err := uuid.Parse(s)
		if err != nil || id.String() != s || id == uuid.Nil {
			r.fail("consent_id must be a UUID, in lower case")
		}
		e.ConsentID = id
	}
	if b, ok := decodeSegment(r.word("scope_digest")); ok && len(b) == len(e.Scope) {
		e.Scope = [32]byte(b)
	} else {
		r.fail("scope_digest must be a SHA-256 in base64url without padding")
	}
	if e.Action == authz.ActionRegister || e.Action == authz.ActionGrant {
		e.Evidence = r.line("evidence")
	}
}

func (r *errandReader) find(e *authz.Errand, p *meter.Profile) {
	var err error
	if e.Postcode, err = p.ParsePostcode(r.word("postcode")); err != nil {
		r.fail("postcode must be one of the market, as a string, in capitals and without blanks")
	}
	if e.HouseNumber, err = meter.ParseHouseNumber(r.word("house_number")); err != nil {
		r.fail("house_number must be a number of 1 to 99999, as a string, without its addition")
	}
}

const (
	stepSuspend = "suspend"
	stepResume  = "resume"
)

func (r *errandReader) supplier(e *authz.Errand) {
	var err error
	if e.Supplier, err = meter.ParseGLN(r.word("gln")); err != nil {
		r.fail("gln must be a GLN, as a string")
	}
	step := r.word("step")
	if e.Suspend = step == stepSuspend; !e.Suspend && step != stepResume {
		r.fail("step must be suspend or resume")
	}
}

// errandJSON has the members in the order they are written.
type errandJSON struct {
	Type        string   `json:"type"`
	EAN         string   `json:"ean,omitempty"`
	From        string   `json:"from,omitempty"`
	To          string   `json:"to,omitempty"`
	Fields      []string `json:"fields,omitempty"`
	Postcode    string   `json:"postcode,omitempty"`
	HouseNumber string   `json:"house_number,omitempty"`
	GLN         string   `json:"gln,omitempty"`
	Step        string   `json:"step,omitempty"`
	ConsentID   string   `json:"consent_id,omitempty"`
	ScopeDigest string   `json:"scope_digest,omitempty"`
	Evidence    string   `json:"evidence,omitempty"`
	Reason      string   `json:"reason"`
}

// EncodeErrand writes what ParseErrand reads. An errand that it would not read
// is an error that wraps ErrErrand.
func EncodeErrand(e authz.Errand, p *meter.Profile) ([]byte, error) {
	o := errandJSON{Type: typePrefix + e.Kind.String(), Reason: e.Reason}
	if e.Kind.OfPoint() {
		o.EAN = e.EAN.String()
	}
	switch e.Kind {
	case authz.ErrandReadings:
		o.From, o.To = e.Days.From.String(), e.Days.To.String()
		for _, code := range e.Fields {
			f, _ := p.FieldByCode(code)
			o.Fields = append(o.Fields, f.Name)
		}
	case authz.ErrandStep:
		o.Step, o.Evidence = e.Action.String(), e.Evidence
		o.ScopeDigest = base64.RawURLEncoding.EncodeToString(e.Scope[:])
		if e.Action != authz.ActionRegister {
			o.ConsentID = uuid.UUID(e.ConsentID).String()
		}
	case authz.ErrandFind:
		o.Postcode, o.HouseNumber = e.Postcode.String(), e.HouseNumber.String()
	case authz.ErrandSupplier:
		o.GLN, o.Step = e.Supplier.String(), stepResume
		if e.Suspend {
			o.Step = stepSuspend
		}
	}
	b, err := json.Marshal([]errandJSON{o})
	if err != nil {
		return nil, err
	}
	if _, err := ParseErrand(b, p); err != nil {
		return nil, err
	}
	return b, nil
}

// oneObject takes apart the one object of an array.
func oneObject(b []byte) (map[string]json.RawMessage, error) {
	var list []json.RawMessage
	if json.Unmarshal(b, &list) != nil || len(list) != 1 {
		return nil, strictjson.ErrMalformed
	}
	return strictjson.Object(list[0])
}

// plainText says whether s is one line of 1 to maxText bytes of printable UTF-8.
func plainText(s string) bool {
	if s == "" || len(s) > maxText || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
