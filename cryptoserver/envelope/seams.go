// Package envelope fixes the sealed formats around a block: the ciphertext,
// its additional authenticated data, the data key record and the receipt.
// Each has a domain tag, a format version and golden vectors.
package envelope

import (
	"errors"
	"time"

	"kluis/meter"
)

// ErrFormat is wrapped when bytes are not of the format.
var ErrFormat = errors.New("not a sealed format of Kluis")

// BlockID is what a ciphertext is bound to: its AAD ("kluis/block-aad").
type BlockID struct {
	EAN        meter.EAN
	Field      meter.FieldCode
	Day        meter.Day
	Resolution meter.Resolution
	Version    uint32 // of the block
	KeyID      [16]byte
}

// AppendAAD appends the canonical AAD.
func (b BlockID) AppendAAD(dst []byte) []byte { panic("todo") }

// Ciphertext is the stored form: magic "KB" 0x01, suite (1 = AES-256-GCM),
// key id, IV length, IV, ciphertext and tag.
type Ciphertext struct {
	KeyID [16]byte
	IV    []byte
	Body  []byte // ciphertext || tag
}

// AppendCiphertext and ParseCiphertext (aliases its input) are inverses.
func AppendCiphertext(dst []byte, c Ciphertext) []byte { panic("todo") }
func ParseCiphertext(b []byte) (Ciphertext, error)     { panic("todo") }

// KeyRecord is a data key as stored. Its MAC (HMAC under the record MAC key)
// is over Message.
type KeyRecord struct {
	ID        [16]byte
	EAN       meter.EAN
	Class     meter.Class
	Month     meter.Month
	Occupancy meter.Day // first day of the occupancy; 0 when none is known
	Epoch     uint32
	Wrapped   []byte
	MAC       [32]byte
}

// Message is the canonical form under the MAC ("kluis/key-record").
func (k KeyRecord) Message() []byte { panic("todo") }

// ContentMessage is the canonical form under content_mac ("kluis/content"):
// EAN, field, day, resolution and plaintext.
func ContentMessage(id BlockID, plaintext []byte) []byte { panic("todo") }

// Receipt is what a cryptoserver says of one unit it opened
// ("kluis/receipt"). Receipts of one boot form a hash chain.
type Receipt struct {
	ServerID      string
	BootID        [16]byte
	Sequence      uint64   // 1, 2, ... since boot
	Previous      [32]byte // SHA-256 of the receipt before; zero for the first
	At            time.Time
	InteractionID [16]byte
	Supplier      meter.GLN
	TokenID       [32]byte // SHA-256 of the token's jti
	EAN           meter.EAN
	Purpose       meter.Purpose
	LegalFile     [32]byte // digest of its payload
	FileVersion   uint64
	Profile       [32]byte
	Opened        uint32   // blocks opened
	Refused       uint32   // blocks outside the grant
	Damaged       uint32   // blocks that did not open
	Content       [32]byte // digest of the canonical list of what was opened
}

// Encode and ParseReceipt are inverses.
func (r Receipt) Encode() []byte             { panic("todo") }
func ParseReceipt(b []byte) (Receipt, error) { panic("todo") }

// Opened is one line of the list that Receipt.Content digests.
type Opened struct {
	ID    BlockID
	Basis meter.Basis
	Given meter.Resolution // finest resolution that left
}

// ContentDigest is SHA-256 over the canonical list ("kluis/opened").
func ContentDigest(list []Opened) [32]byte { panic("todo") }
