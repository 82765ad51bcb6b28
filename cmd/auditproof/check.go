package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/cryptoserver/checkpoint"
)

const format = "kluis-audit-proof/1"

// proof is one record's, as kluis audit prove writes it; a file holds a list.
type proof struct {
	Format     string      `json:"format"`
	Origin     string      `json:"origin"`
	Checkpoint string      `json:"checkpoint"`
	Index      int64       `json:"index"`
	Salt       []byte      `json:"salt"`
	Record     []byte      `json:"record"`
	Receipt    []byte      `json:"receipt"`
	Hashes     []tlog.Hash `json:"hashes"`
}

type result struct {
	index    int64
	size     uint64
	signedAt time.Time
	says     string
}

// check proves every record of a file, or says why not.
func check(file, pem []byte, origin string, held []byte) ([]result, error) {
	keys, err := checkpoint.ParseKeys(pem)
	if err != nil {
		return nil, err
	}
	var proofs []proof
	d := json.NewDecoder(bytes.NewReader(file))
	d.DisallowUnknownFields()
	if err := d.Decode(&proofs); err != nil {
		return nil, fmt.Errorf("the file is no proof: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the file is no proof: there is more after it")
	}
	if len(proofs) == 0 {
		return nil, errors.New("the file proves nothing")
	}
	var out []result
	for i, p := range proofs {
		if p.Format != format {
			return nil, fmt.Errorf("proof %d is of another format than %s", i+1, format)
		}
		if p.Origin != origin {
			return nil, fmt.Errorf("proof %d is of another log than %s", i+1, origin)
		}
		c, err := checkpoint.Open(p.Checkpoint, origin, keys...)
		if err != nil {
			return nil, fmt.Errorf("proof %d: %w", i+1, err)
		}
		if held != nil {
			h, err := checkpoint.Open(string(held), origin, keys...)
			if err != nil {
				return nil, fmt.Errorf("the checkpoint you hold: %w", err)
			}
			if h.Size != c.Size || h.Root != c.Root {
				return nil, fmt.Errorf("proof %d is not of the checkpoint you hold: ask for one that is (kluis audit prove --checkpoint)", i+1)
			}
		}
		if len(p.Salt) != 16 {
			return nil, fmt.Errorf("proof %d: the salt must be 16 bytes", i+1)
		}
		if p.Index < 0 || p.Index >= int64(c.Size) {
			return nil, fmt.Errorf("proof %d: the leaf lies outside of the checkpoint", i+1)
		}
		if err := tlog.CheckRecord(p.Hashes, int64(c.Size), tlog.Hash(c.Root), p.Index, leafHash(p.Salt, p.Record, p.Receipt)); err != nil {
			return nil, fmt.Errorf("proof %d: the record is not the leaf %d of the signed tree", i+1, p.Index)
		}
		says, err := describe(p.Record, p.Receipt)
		if err != nil {
			return nil, fmt.Errorf("proof %d: %w", i+1, err)
		}
		out = append(out, result{p.Index, c.Size, c.At, says})
	}
	return out, nil
}

// leafHash is SHA-256 of 0x00 (RFC 6962) and the leaf: a domain tag, a version,
// the kind 1 (access record) and the digest of salt, record and receipt, each
// with its length before it.
func leafHash(salt, record, receipt []byte) tlog.Hash {
	text := func(b, p []byte) []byte { return append(binary.BigEndian.AppendUint32(b, uint32(len(p))), p...) }
	b := append(text(nil, []byte("kluis/access-leaf")), 1)
	for _, p := range [][]byte{salt, record, receipt} {
		b = text(b, p)
	}
	digest := sha256.Sum256(b)
	leaf := append(text(nil, []byte("kluis/audit-leaf")), 1, 1)
	return tlog.RecordHash(append(leaf, digest[:]...))
}

var (
	purposes = []string{"none", "BILLING", "ENERGY_MANAGEMENT", "SWITCH", "MOVE", "CUSTOMER_SERVICE"}
	outcomes = []string{"", "given", "given in part", "all withheld", "no relation", "failed", "refused", "unchanged"}
	asked    = []string{"", "readings", "a list of metering points", "what it may read", "consents", "a step of a consent", "the access log", "what changed",
		"the connection", "what is at an address", "oversight", "a step of a supplier"}
	actions = []string{"", "register", "grant", "reject", "revoke", "request"}
)

// supplierStep is the one operation whose record says more.
const supplierStep = 11

// describe reads what a record begins with: who asked for what, and when.
func describe(record, receipt []byte) (string, error) {
	const tag = "kluis/access-record"
	r := reader{b: record}
	if n := r.u32(); n != uint32(len(tag)) || string(r.take(len(tag))) != tag {
		return "", errors.New("what is proven is no access record")
	}
	version := r.take(1)
	interaction := r.take(16)
	at := int64(r.u64())
	operation := r.take(1)
	supplier := r.u64()
	r.take(64) // digests of the token's id and the certificate
	employee, reason := r.text(), r.text()
	ean := r.u64()
	purpose := r.take(1)
	from, to := int32(r.u32()), int32(r.u32())
	fields := r.u32()
	if fields > 1<<16 {
		r.short = true
	}
	if !r.short {
		r.take(2*int(fields) + 2) // fields, resolution, kind
	}
	asOf := int64(r.u64())
	consent, action := r.take(16), r.take(1)
	step := ""
	if operation[0] == supplierStep {
		target, suspend := r.u64(), r.take(1)
		r.take(40) // version and digest of the supplier's record
		step = fmt.Sprintf(" %013d: resume", target)
		if suspend[0] == 1 {
			step = fmt.Sprintf(" %013d: suspend", target)
		}
	}
	outcome := r.take(1)
	if r.short {
		return "", errors.New("the access record is cut off")
	}
	if version[0] != 1 {
		return fmt.Sprintf("  an access record of version %d, which this program cannot read; interaction %x\n", version[0], interaction), nil
	}
	name := func(list []string, i byte) string {
		if int(i) < len(list) {
			return list[i]
		}
		return fmt.Sprintf("unknown (%d)", i)
	}
	day := func(n int32) string { return time.Unix(int64(n)*86400, 0).UTC().Format(time.DateOnly) }
	opened := "nothing was opened"
	if len(receipt) > 0 {
		opened = "a cryptoserver opened something and gave a receipt"
	}
	uuid := func(b []byte) string { return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]) }
	what := name(asked, operation[0]) + step
	if ean != 0 {
		what += fmt.Sprintf(" of %018d", ean)
	}
	if purpose[0] != 0 {
		what += ", purpose " + name(purposes, purpose[0])
	}
	switch {
	case to == openEnd:
		what += ", days from " + day(from)
	case from != to:
		what += fmt.Sprintf(", days from %s to before %s", day(from), day(to))
	}
	if asOf != 0 {
		what += ", as stored at " + instant(asOf)
	}
	if !bytes.Equal(consent, make([]byte, 16)) {
		what += ", consent " + uuid(consent)
	}
	if action[0] != 0 {
		what += ": " + name(actions, action[0])
	}
	who := fmt.Sprintf("%013d", supplier)
	if employee != "" {
		who += fmt.Sprintf(", employee %q, because %q", employee, reason)
	}
	return fmt.Sprintf("  interaction  %s\n  at           %s\n  caller       %s\n  asked for    %s\n  outcome      %s; %s\n", uuid(interaction),
		instant(at), who, what, name(outcomes, outcome[0]), opened), nil
}

// instant is a time in microseconds since 1970.
func instant(micros int64) string {
	return time.UnixMicro(micros).UTC().Format("2006-01-02 15:04:05.000000 MST")
}

// openEnd stands for the end of days that have none yet.
const openEnd = math.MaxInt32

// reader reads big-endian fields; past the end it gives zeros and says so.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n > len(r.b) {
		r.short = true
		return make([]byte, n)
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) text() string {
	n := r.u32()
	if n > 1<<16 {
		r.short = true
		return ""
	}
	return string(r.take(int(n)))
}

func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }
