package web

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"kluis/cryptoserver/checkpoint"
	"kluis/meter"
	"kluis/openapi/client"
)

// proven is what a proof that checks says.
type proven struct {
	Size     uint64 // entries under the signed head
	Index    int64
	SignedAt time.Time
	Whole    bool                   // the record itself was checked, not its digest alone
	Record   *client.AccessLogEntry // with Whole: what the record itself says
}

// errProof is wrapped by all that is wrong with a proof.
var errProof = errors.New("the proof does not check")

// checkProof checks with the keys pinned here what the API says of an entry of a
// metering point: the API is not taken at its word for anything in it. Whoever
// altered a part of the proof, of the head or of the record is found out.
func checkProof(a *client.AccessProof, interaction uuid.UUID, ean meter.EAN, origin string, keys []*ecdsa.PublicKey, profile *meter.Profile) (proven, error) {
	bad := func(what string) (proven, error) { return proven{}, fmt.Errorf("%w: %s", errProof, what) }
	if a.Origin != origin {
		return bad("it is of another log")
	}
	c, err := checkpoint.Open(a.Checkpoint, origin, keys...)
	if err != nil {
		return proven{}, fmt.Errorf("%w: %w", errProof, err)
	}
	if a.Size < 0 || uint64(a.Size) != c.Size || !a.SignedAt.Equal(c.At) {
		return bad("size or time are not those that were signed")
	}
	if c.Size > math.MaxInt64 || a.Index < 0 || uint64(a.Index) >= c.Size {
		return bad("the entry lies outside of what was signed")
	}
	raw, err := hex.DecodeString(a.Leaf)
	if err != nil || len(raw) != tlog.HashSize {
		return bad("the digest of the entry has another form")
	}
	leaf := tlog.Hash(raw)
	hashes := make([]tlog.Hash, len(a.Hashes))
	for i, h := range a.Hashes {
		if len(h) != tlog.HashSize {
			return bad("a digest on the way has another form")
		}
		hashes[i] = tlog.Hash(h)
	}
	if err := tlog.CheckRecord(hashes, int64(c.Size), tlog.Hash(c.Root), int64(a.Index), leaf); err != nil {
		return bad("the entry is not part of what was signed")
	}
	p := proven{Size: c.Size, Index: int64(a.Index), SignedAt: c.At, Whole: a.Whole}
	if !a.Whole {
		if a.Salt != nil || a.Record != nil || a.Receipt != nil {
			return bad("a record is there that should not be")
		}
		return p, nil
	}
	if a.Salt == nil || len(*a.Salt) != saltSize || a.Record == nil {
		return bad("the record is missing")
	}
	if accessLeaf(*a.Salt, *a.Record, receiptOf(a)) != leaf {
		return bad("the record is not the entry")
	}
	var of meter.EAN
	if p.Record, of, err = parseRecord(*a.Record, receiptOf(a), profile); err != nil {
		return proven{}, fmt.Errorf("%w: %w", errProof, err)
	}
	if p.Record.InteractionId != interaction || of != ean {
		return bad("the record is of another request")
	}
	return p, nil
}

func receiptOf(a *client.AccessProof) []byte {
	if a.Receipt == nil {
		return []byte{}
	}
	return *a.Receipt
}

// saltSize is how long the salt of a record is.
const saltSize = 16

// accessLeaf is the digest of an access record in the log, as docs/AUDIT.md says
// and cmd/auditproof computes it: it is written out here, so that what checks
// shares nothing with what is checked.
func accessLeaf(salt, record, receipt []byte) tlog.Hash {
	text := func(b, p []byte) []byte {
		return append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...) //nolint:gosec // an answer is bounded
	}
	b := append(text(nil, []byte("kluis/access-leaf")), 1)
	for _, p := range [][]byte{salt, record, receipt} {
		b = text(b, p)
	}
	digest := sha256.Sum256(b)
	leaf := append(text(nil, []byte("kluis/audit-leaf")), 1, 1)
	return tlog.RecordHash(append(leaf, digest[:]...))
}

// proofFile is a proof as cmd/auditproof reads it.
type proofFile struct {
	Format     string      `json:"format"`
	Origin     string      `json:"origin"`
	Checkpoint string      `json:"checkpoint"`
	Index      int64       `json:"index"`
	Salt       []byte      `json:"salt"`
	Record     []byte      `json:"record"`
	Receipt    []byte      `json:"receipt"`
	Hashes     []tlog.Hash `json:"hashes"`
}

const proofFormat = "kluis-audit-proof/1"

// fileOf is a proof that was checked, and is whole, for who wants to check it too.
func fileOf(a *client.AccessProof) []proofFile {
	f := proofFile{
		Format: proofFormat, Origin: a.Origin, Checkpoint: a.Checkpoint, Index: int64(a.Index),
		Salt: *a.Salt, Record: *a.Record, Receipt: receiptOf(a), Hashes: []tlog.Hash{},
	}
	for _, h := range a.Hashes {
		f.Hashes = append(f.Hashes, tlog.Hash(h))
	}
	return []proofFile{f}
}
