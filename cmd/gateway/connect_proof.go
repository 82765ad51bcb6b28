package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"

	"kluis/auditlog/leaf"
	"kluis/cryptoserver/checkpoint"
	"kluis/internal/postgres"
	"kluis/meter"
	"kluis/server"
)

// proofs proves rows of the access log with the database's tree.
type proofs struct {
	*postgres.Gateway
	seals []*ecdsa.PublicKey
}

func (p proofs) Entry(ctx context.Context, ean meter.EAN, interaction [16]byte) (*server.LogRow, error) {
	r, err := p.LogEntry(ctx, ean, interaction)
	if r == nil || err != nil {
		return nil, err
	}
	return &server.LogRow{Place: server.LogPlace(r.Place), Record: r.Record, Receipt: r.Receipt}, nil
}

// Proof proves the row against the newest signed head. The head must bear the
// signature of a seal key, under the name that it gives itself: whether that is
// the name of the log, whoever checks the proof knows.
func (p proofs) Proof(ctx context.Context, ean meter.EAN, row *server.LogRow) (server.LogProof, error) {
	id := row.Place.Interaction
	_, note, err := p.LogHead(ctx)
	if err != nil {
		return server.LogProof{}, err
	}
	index, salt, err := p.LogLeaf(ctx, ean, id)
	if err != nil {
		return server.LogProof{}, err
	}
	if note == nil || salt == nil {
		return server.LogProof{}, server.ErrNotLogged
	}
	origin, _, _ := strings.Cut(string(note), "\n")
	head, err := checkpoint.Open(string(note), origin, p.seals...)
	if err != nil {
		return server.LogProof{}, fmt.Errorf("%w: %w", server.ErrLogAltered, err)
	}
	size := int64(head.Size) // at most 2^62
	if index >= size {
		return server.LogProof{}, server.ErrNotLogged
	}
	logged := leaf.Row{Key: leaf.Key{Kind: leaf.Access, ID: id, Number: ean.Int64()}, Content: row.Record, Receipt: row.Receipt, Salt: salt}
	hashes, err := leaf.Prove(size, tlog.Hash(head.Root), index, &logged, tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		return p.Hashes(ctx, at)
	}))
	switch {
	case errors.Is(err, leaf.ErrAltered), errors.Is(err, postgres.ErrNoHash):
		return server.LogProof{}, fmt.Errorf("%w: %w", server.ErrLogAltered, err)
	case err != nil:
		return server.LogProof{}, err
	}
	out := server.LogProof{Origin: origin, Checkpoint: note, Index: index, Size: size, SignedAt: head.At, Leaf: logged.Hash(), Salt: salt}
	for _, h := range hashes {
		out.Hashes = append(out.Hashes, h[:])
	}
	return out, nil
}
