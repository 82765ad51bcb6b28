package auditlog

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/cryptoserver/checkpoint"
)

// ProofFormat is the first member of a proof; cmd/auditproof reads it.
const ProofFormat = "kluis-audit-proof/1"

// Proof shows that an access record is in the log: with what is in it, and the
// public seal keys, anybody can compute that the record's leaf belongs to the
// signed checkpoint. It holds the record, and so personal data.
type Proof struct {
	Format     string      `json:"format"`
	Origin     string      `json:"origin"`
	Checkpoint string      `json:"checkpoint"` // signed note
	Index      int64       `json:"index"`      // of the leaf
	Salt       []byte      `json:"salt"`
	Record     []byte      `json:"record"`  // canonical access record
	Receipt    []byte      `json:"receipt"` // of the cryptoserver; empty when nothing was opened
	Hashes     []tlog.Hash `json:"hashes"`  // from the leaf to the root (RFC 6962, 2.1.1)
}

// MaxTogether bounds the records of one interaction that are looked at together:
// a stream has one for each metering point, and may have a hundred thousand.
const MaxTogether = 1000

// NotTogether is the error where an interaction has more records than that.
func NotTogether(interaction [16]byte) error {
	return fmt.Errorf("interaction %s was for more than %d metering points, each of which has an access record of its own: say of which one, with --ean", uuidText(interaction), MaxTogether)
}

// Prove makes a proof for each access record of an interaction, of one metering
// point when ean is not 0; there are at most MaxTogether. held is a checkpoint that whoever checks it has; nil:
// the newest one.
func Prove(ctx context.Context, r Reader, l Log, interaction [16]byte, ean int64, held []byte) ([]Proof, error) {
	note := held
	if note == nil {
		n, err := r.LastCheckpoint(ctx)
		if err != nil {
			return nil, err
		}
		if n.Size == 0 {
			return nil, fmt.Errorf("%w: the log has no checkpoint yet", ErrNotLogged)
		}
		note = n.Text
	}
	c, err := l.open(note)
	if err != nil {
		return nil, err
	}
	leaves, err := logged(ctx, r, interaction, ean)
	if err != nil {
		return nil, err
	}
	var out []Proof
	later := false
	for _, k := range leaves {
		if k.Index >= int64(c.Size) {
			later = true
			continue
		}
		p, err := prove(ctx, r, l, c, k)
		if err != nil {
			return nil, err
		}
		p.Checkpoint = string(note)
		out = append(out, p)
	}
	switch {
	case len(out) > 0:
		return out, nil
	case later:
		return nil, fmt.Errorf("%w yet: its leaf is younger than the checkpoint of %d leaves; a newer one follows within seconds", ErrNotLogged, c.Size)
	case ean != 0:
		return nil, fmt.Errorf("%w: there is no access record of interaction %s at this metering point: check both", ErrNotLogged, uuidText(interaction))
	default:
		return nil, fmt.Errorf("%w: there is no access record of interaction %s", ErrNotLogged, uuidText(interaction))
	}
}

// logged are the leaves of the access records that Prove is asked for.
func logged(ctx context.Context, r Reader, interaction [16]byte, ean int64) ([]leaf.IndexedKey, error) {
	if ean != 0 {
		k := leaf.Key{Kind: leaf.Access, ID: interaction, Number: ean}
		index, err := r.Indexes(ctx, []leaf.Key{k})
		if err != nil || index[0] < 0 {
			return nil, err
		}
		return []leaf.IndexedKey{{Key: k, Index: index[0]}}, nil
	}
	leaves, err := r.Interaction(ctx, interaction, MaxTogether+1)
	if len(leaves) > MaxTogether {
		return nil, NotTogether(interaction)
	}
	return leaves, err
}

func prove(ctx context.Context, r Reader, l Log, c checkpoint.Checkpoint, k leaf.IndexedKey) (Proof, error) {
	rows, err := r.Rows(ctx, []leaf.Key{k.Key})
	if err != nil {
		return Proof{}, err
	}
	if rows[0] == nil {
		return Proof{}, fmt.Errorf("leaf %d is of an access record that is not there any more: run kluis audit verify", k.Index)
	}
	hashes, err := leaf.Prove(int64(c.Size), tlog.Hash(c.Root), k.Index, rows[0], hashReader(ctx, r))
	if errors.Is(err, leaf.ErrAltered) {
		return Proof{}, fmt.Errorf("the access record of leaf %d is not what was logged: run kluis audit verify", k.Index)
	} else if err != nil {
		return Proof{}, err
	}
	return Proof{Format: ProofFormat, Origin: l.Origin, Index: k.Index, Salt: rows[0].Salt, Record: rows[0].Content, Receipt: rows[0].Receipt, Hashes: hashes}, nil
}
