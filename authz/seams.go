// Package authz decides who may read what, and why. It is pure: no clock, no
// database, no network, no keys but public ones.
package authz

import (
	"crypto/ecdsa"
	"errors"
	"time"

	"kluis/meter"
)

// Caller is an authenticated supplier. Only internal/authn makes values that
// satisfy it in production.
type Caller interface {
	Supplier() meter.GLN
}

// ---- sealed facts -------------------------------------------------------

// LegalFile holds all facts that decide who may read one metering point, at
// one version. A *LegalFile comes from SealKeys.LegalFile (verified), or from
// Apply (a draft, to be sealed). Immutable.
type LegalFile struct{ todo int }

func (f *LegalFile) EAN() meter.EAN                            { panic("todo") }
func (f *LegalFile) Version() uint64                           { panic("todo") } // 1, 2, ...
func (f *LegalFile) SealedAt() time.Time                       { panic("todo") } // UTC, microseconds
func (f *LegalFile) Commodity() meter.Commodity                { panic("todo") }
func (f *LegalFile) Digest() [32]byte                          { panic("todo") } // SHA-256 of the payload
func (f *LegalFile) Occupancies() []Occupancy                  { panic("todo") }
func (f *LegalFile) SupplyPeriods() []SupplyPeriod             { panic("todo") }
func (f *LegalFile) Consents() []Consent                       { panic("todo") }
func (f *LegalFile) OptOuts() []meter.DayRange                 { panic("todo") }
func (f *LegalFile) OccupancyAt(d meter.Day) (Occupancy, bool) { panic("todo") }
func (f *LegalFile) Relates(g meter.GLN) bool                  { panic("todo") } // any supply period or consent, ever

// Payload is the canonical encoding ("kluis/legal-file"), the bytes signed.
func (f *LegalFile) Payload() []byte { panic("todo") }

// Occupancy is one customer's time at the metering point. To is meter.MaxDay
// while it lasts. It carries no name: From identifies it.
type Occupancy struct{ Days meter.DayRange }

// SupplyPeriod is a supplier's registered time at the metering point.
type SupplyPeriod struct {
	Supplier meter.GLN
	Days     meter.DayRange
}

// ConsentState is where a consent stands.
type ConsentState uint8

// Never renumber. Requested, Rejected, Lapsed come with the consent life cycle.
const (
	ConsentActive  ConsentState = 2
	ConsentRevoked ConsentState = 4
)

// Consent is the customer's permission for one supplier.
type Consent struct {
	ID          [16]byte // UUID
	Supplier    meter.GLN
	Purpose     meter.Purpose
	Classes     []meter.Class
	Granularity meter.Resolution // finest
	Days        meter.DayRange   // days that may be read
	ValidFrom   time.Time        // when it may be used
	ValidUntil  time.Time        // exclusive
	Occupancy   meter.Day        // From of the occupancy whose customer gave it
	State       ConsentState
	GrantedAt   time.Time
	RevokedAt   time.Time // zero unless revoked
	Evidence    string    // reference to the proof, at most 128 bytes, no personal data
}

// Step is one change of a legal file. Its canonical encoding
// ("kluis/legal-step") travels to the cryptoserver.
type Step interface {
	apply(f *LegalFile, at time.Time) error
	// Encode returns the canonical bytes.
	Encode() []byte
}

// DecodeStep is the inverse of Encode; refuses everything else.
func DecodeStep(b []byte) (Step, error) { panic("todo") }

// The steps there are.
type (
	// Register starts a legal file: version 1, no facts.
	Register struct {
		EAN       meter.EAN
		Commodity meter.Commodity
	}
	// SetOccupancy adds an occupancy, ending an open one at its start.
	SetOccupancy struct{ Days meter.DayRange }
	// SetSupply registers a supplier for days, ending an open period of
	// another at its start; an overlap with a closed period is refused.
	SetSupply struct {
		Supplier meter.GLN
		Days     meter.DayRange
	}
	// GrantConsent records an active consent. Occupancy and state are the
	// step's to set, from the file and the time.
	GrantConsent struct {
		ID          [16]byte
		Supplier    meter.GLN
		Purpose     meter.Purpose
		Classes     []meter.Class
		Granularity meter.Resolution
		Days        meter.DayRange
		ValidUntil  time.Time
		Evidence    string
	}
	// RevokeConsent ends a consent at the step's time.
	RevokeConsent struct{ ID [16]byte }
	// SetOptOut opts the customer out of remote reading for days.
	SetOptOut struct{ Days meter.DayRange }
	// EndOptOut opts in again from a day on.
	EndOptOut struct{ From meter.Day }
)

// ErrStep is wrapped by every refusal of a step; the text says what to do.
var ErrStep = errors.New("step refused")

// Apply yields version + 1 of prev (nil for Register), as an unsealed draft.
// actor names who took the step (the operator's certificate name), at is the
// sealing time. Never changes prev.
func Apply(prev *LegalFile, step Step, actor string, at time.Time) (*LegalFile, error) { panic("todo") }

// Supplier is a supplier's record: who it is and with which certificates it
// may call. Immutable.
type Supplier struct{ todo int }

func (s *Supplier) GLN() meter.GLN              { panic("todo") }
func (s *Supplier) Name() string                { panic("todo") }
func (s *Supplier) Version() uint64             { panic("todo") }
func (s *Supplier) Scopes() []string            { panic("todo") }
func (s *Supplier) Suspended() bool             { panic("todo") }
func (s *Supplier) Certificates() []Certificate { panic("todo") }

// Accepts says whether the leaf certificate may be used now; the error says
// why not (ErrCertificateUnknown, ErrCertificateRevoked, ErrSuspended).
func (s *Supplier) Accepts(thumbprint [32]byte, now time.Time) error { panic("todo") }

// Certificate is a registered client certificate.
type Certificate struct {
	Thumbprint [32]byte  // SHA-256 of the DER
	NotAfter   time.Time // of the certificate
	RevokedAt  time.Time // zero unless revoked
}

// SupplierFacts is what a new version of a supplier record says.
type SupplierFacts struct {
	GLN          meter.GLN
	Name         string
	Scopes       []string
	Suspended    bool
	Certificates []Certificate
}

// NewSupplier makes version + 1 of prev (nil for the first), unsealed.
// A certificate once revoked stays revoked.
func NewSupplier(prev *Supplier, facts SupplierFacts, at time.Time) (*Supplier, error) { panic("todo") }

// Payload is the canonical encoding ("kluis/supplier"), the bytes signed.
func (s *Supplier) Payload() []byte { panic("todo") }

var (
	ErrCertificateUnknown = errors.New("certificate not registered for this supplier")
	ErrCertificateRevoked = errors.New("certificate revoked")
	ErrSuspended          = errors.New("supplier suspended")
	// ErrSeal is wrapped whenever a sealed fact does not verify or parse.
	ErrSeal = errors.New("sealed fact does not verify")
)

// KeyID is the first 8 bytes of the SHA-256 of the key's PKIX encoding.
type KeyID [8]byte

// KeyIDOf computes it.
func KeyIDOf(k *ecdsa.PublicKey) KeyID { panic("todo") }

// Signer signs with a seal key in an HSM: ES256 over the digest, r||s.
type Signer interface {
	KeyID() KeyID
	SignDigest(digest [32]byte) ([64]byte, error)
}

// Seal wraps a payload in a signed envelope ("kluis/sealed": key id, payload,
// signature over SHA-256 of everything before it).
func Seal(payload []byte, s Signer) ([]byte, error) { panic("todo") }

// SealKeys are the pinned public keys that sealed facts must verify under.
// Safe for concurrent use; remembers what it verified (bounded), keyed by the
// digest of the sealed bytes.
type SealKeys struct{ todo int }

func NewSealKeys(keys ...*ecdsa.PublicKey) (*SealKeys, error) { panic("todo") }

// LegalFile verifies and parses. The caller must still check that EAN() is
// the one it asked for.
func (k *SealKeys) LegalFile(sealed []byte) (*LegalFile, error) { panic("todo") }

// Supplier verifies and parses.
func (k *SealKeys) Supplier(sealed []byte) (*Supplier, error) { panic("todo") }

// ---- the decision -------------------------------------------------------

// Request is what the caller asks for of one metering point.
type Request struct {
	EAN        meter.EAN
	Purpose    meter.Purpose
	Days       meter.DayRange // 1 to 366 days
	Fields     []meter.FieldCode
	Resolution meter.Resolution // 0: the finest that is granted and stored
	Kind       meter.Kind       // 0: REGISTER for registers, CONSUMPTION for intervals
}

// ErrNoRelation: the metering point is unknown or none of the caller's; the
// two must be answered alike.
var ErrNoRelation = errors.New("no relation to this metering point")

// Grant is what Decide allowed. Only Decide makes one that is not empty.
type Grant struct{ todo int }

func (g Grant) Empty() bool        { panic("todo") }
func (g Grant) EAN() meter.EAN     { panic("todo") }
func (g Grant) Items() []GrantItem { panic("todo") }

// Reads lists the stored days to fetch and open, per field: for registers
// with the closing day, and only month boundaries where only P1M is granted
// or asked for. Sorted by field, disjoint.
func (g Grant) Reads() []FieldDays { panic("todo") }

// Covers reports whether one stored block may be opened under the grant.
func (g Grant) Covers(f meter.FieldCode, d meter.Day) bool { panic("todo") }

// FieldDays is a field and days of it.
type FieldDays struct {
	Field meter.FieldCode
	Days  meter.DaySet
}

// GrantItem is one field on one basis.
type GrantItem struct {
	Spec  meter.SeriesSpec
	Basis meter.Basis
	Rule  string // id of the profile's rule
}

// Withheld is a run of days of a field that is not given, and why.
type Withheld struct {
	Field  meter.FieldCode
	Days   meter.DayRange
	Reason meter.Reason
}

// Decide is the one decision, run by the gateway before it fetches and by the
// cryptoserver before it opens. Every requested field and day is either in
// the grant or withheld with exactly one reason. The only error is
// ErrNoRelation.
func Decide(c Caller, r Request, f *LegalFile, p *meter.Profile, now time.Time) (Grant, []Withheld, error) {
	panic("todo")
}
