package envelope

import (
	"crypto/sha256"
	"fmt"
	"time"

	"kluis/internal/canonical"
	"kluis/meter"
)

// Receipt is what a cryptoserver says of one unit it opened
// ("kluis/receipt"). Receipts of one boot form a hash chain.
type Receipt struct {
	ServerID      string // 1 to 64 bytes
	BootID        [16]byte
	Sequence      uint64    // 1, 2, ... since boot
	Previous      [32]byte  // SHA-256 of the receipt before; zero for the first
	At            time.Time // UTC, microseconds
	InteractionID [16]byte
	Supplier      meter.GLN
	TokenID       [32]byte // SHA-256 of the token's jti
	Employee      [32]byte // EmployeeDigest; zero when a supplier asked
	EAN           meter.EAN
	Purpose       meter.Purpose
	LegalFile     [32]byte // digest of its payload
	FileVersion   uint64
	Profile       [32]byte
	Opened        uint32   // blocks opened
	Refused       uint32   // blocks outside the grant, a second of the same field and day, or erased
	Damaged       uint32   // blocks that did not open
	Content       [32]byte // digest of the canonical list of what was opened
}

const (
	receiptDomain  = "kluis/receipt"
	receiptVersion = 1
	maxServerID    = 64

	employeeDomain  = "kluis/receipt-employee"
	employeeVersion = 1

	openedDomain  = "kluis/opened"
	openedVersion = 1
	openedSize    = 8 + 2 + 4 + 1 + 4 + 16 + 1 + 1
)

// Encode and ParseReceipt are inverses.
func (r Receipt) Encode() []byte {
	w := canonical.New(receiptDomain, receiptVersion)
	w.String(r.ServerID)
	w.Fixed(r.BootID[:])
	w.U64(r.Sequence)
	w.Fixed(r.Previous[:])
	w.Time(r.At)
	w.Fixed(r.InteractionID[:])
	w.I64(r.Supplier.Int64())
	w.Fixed(r.TokenID[:])
	w.Fixed(r.Employee[:])
	w.I64(r.EAN.Int64())
	w.U8(uint8(r.Purpose))
	w.Fixed(r.LegalFile[:])
	w.U64(r.FileVersion)
	w.Fixed(r.Profile[:])
	w.U32(r.Opened)
	w.U32(r.Refused)
	w.U32(r.Damaged)
	w.Fixed(r.Content[:])
	return w.Encoded()
}

// ParseReceipt refuses everything Encode would not have written; the error
// wraps ErrFormat.
func ParseReceipt(b []byte) (Receipt, error) {
	var r Receipt
	d, _, err := canonical.Open(b, receiptDomain, receiptVersion)
	if err != nil {
		return Receipt{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	r.ServerID = d.String(maxServerID)
	d.Fixed(r.BootID[:])
	r.Sequence = d.U64()
	d.Fixed(r.Previous[:])
	r.At = d.Time()
	d.Fixed(r.InteractionID[:])
	gln := d.I64()
	d.Fixed(r.TokenID[:])
	d.Fixed(r.Employee[:])
	ean := d.I64()
	r.Purpose = meter.Purpose(d.U8())
	d.Fixed(r.LegalFile[:])
	r.FileVersion = d.U64()
	d.Fixed(r.Profile[:])
	r.Opened = d.U32()
	r.Refused = d.U32()
	r.Damaged = d.U32()
	d.Fixed(r.Content[:])
	if d.Err() == nil {
		if r.ServerID == "" {
			d.Refuse("receipt without a server")
		}
		if r.Supplier, err = meter.GLNFromInt64(gln); err != nil {
			d.Refuse("not a GLN")
		}
		if r.EAN, err = meter.EANFromInt64(ean); err != nil {
			d.Refuse("not an EAN")
		}
		if r.Purpose < meter.Billing || r.Purpose > meter.CustomerService {
			d.Refuse("unknown purpose")
		}
		if r.At.IsZero() {
			d.Refuse("receipt without a time")
		}
		if r.Sequence == 0 || r.FileVersion == 0 {
			d.Refuse("count from one")
		}
	}
	if err := d.Close(); err != nil {
		return Receipt{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return r, nil
}

// EmployeeDigest is what a receipt says of the employee of the grid operator who
// asked, and why: the subject and the errand's reason of the access token, which
// the access record names. So nobody can put another employee in the record, and
// the journal, which is kept when records are pruned, names none.
func EmployeeDigest(tokenID [32]byte, subject, reason string) [32]byte {
	w := canonical.New(employeeDomain, employeeVersion)
	w.Fixed(tokenID[:])
	w.String(subject)
	w.String(reason)
	return sha256.Sum256(w.Encoded())
}

// OfEmployee says whether the receipt is of what that employee asked for that
// reason; both empty: of what a supplier asked.
func (r *Receipt) OfEmployee(subject, reason string) bool {
	if subject == "" && reason == "" {
		return r.Employee == [32]byte{}
	}
	return r.Employee == EmployeeDigest(r.TokenID, subject, reason)
}

// Opened is one line of the list that Receipt.Content digests.
type Opened struct {
	ID    BlockID
	Basis meter.Basis
	Given meter.Resolution // finest resolution that left; 0 when only its absence showed
}

// ContentDigest is SHA-256 over the canonical list ("kluis/opened"), in the
// order given. A cryptoserver lists blocks as they came in the request.
func ContentDigest(list []Opened) [32]byte {
	w := canonical.Append(make([]byte, 0, 64+openedSize*len(list)), openedDomain, openedVersion)
	w.Count(len(list))
	for i := range list {
		o := &list[i]
		w.I64(o.ID.EAN.Int64())
		w.U16(uint16(o.ID.Field))
		w.I32(int32(o.ID.Day))
		w.U8(uint8(o.ID.Resolution))
		w.U32(o.ID.Version)
		w.Fixed(o.ID.KeyID[:])
		w.U8(uint8(o.Basis))
		w.U8(uint8(o.Given))
	}
	return sha256.Sum256(w.Encoded())
}
