package auditlog

import (
	"bytes"
	"context"
	"fmt"
	"math"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/cryptoserver/envelope"
)

// A sealed fact counts because it is stored: a cryptoserver seals a step for
// whoever may take it, and verifies what it is shown by its seal alone. So a
// captured gateway could have a step sealed, keep it to itself, and have
// readings opened on it. Every opening therefore must be on the legal file that
// is stored, and every stored one must follow from the one before.

const pageFiles = 500

// fact names a version of a sealed fact by its digest.
type fact struct {
	leaf.Key
	digest [32]byte
}

// notStored says of each fact why it is not the one that is stored; "": it is.
// A cryptoserver verified what a digest in its journal is of, so no signature
// needs to be looked at to compare them.
func (v *verifier) notStored(ctx context.Context, facts []fact) ([]string, error) {
	at := make(map[leaf.Key]int, len(facts))
	var keys []leaf.Key
	for i := range facts {
		if _, ok := at[facts[i].Key]; !ok {
			at[facts[i].Key] = len(keys)
			keys = append(keys, facts[i].Key)
		}
	}
	stored, err := v.FactDigests(ctx, keys)
	if err != nil {
		return nil, err
	}
	out := make([]string, len(facts))
	for i := range facts {
		switch d := stored[at[facts[i].Key]]; {
		case d == nil:
			out[i] = fmt.Sprintf("no version %d is stored", facts[i].Version)
		case *d != facts[i].digest:
			out[i] = forked
		}
	}
	return out, nil
}

const forked = "the stored one of that version is another"

// openedOn looks whether what was opened was opened on stored legal files.
func (v *verifier) openedOn(ctx context.Context, receipts []receipt) error {
	files := make([]fact, len(receipts))
	for i := range receipts {
		r := &receipts[i]
		files[i] = fact{leaf.Key{Kind: leaf.LegalFile, Number: r.EAN.Int64(), Version: int64(r.FileVersion)}, r.LegalFile}
	}
	why, err := v.notStored(ctx, files)
	if err != nil {
		return err
	}
	for i := range receipts {
		if why[i] != "" {
			f := receipts[i].finding(OpenedUnstored)
			f.Row, f.Version, f.Detail = leaf.LegalFile.String(), files[i].Version, why[i]
			v.rep.add(f)
		}
	}
	return nil
}

// recordedOn looks whether the legal files that records without a receipt name
// are stored; records are the leaves that they are of, in the order of files.
func (v *verifier) recordedOn(ctx context.Context, records []leaf.IndexedKey, files []fact) error {
	why, err := v.notStored(ctx, files)
	if err != nil {
		return err
	}
	for i := range records {
		if why[i] != "" {
			f := describe(RecordedUnstored, records[i].Key, records[i].Index)
			f.Version, f.Detail = files[i].Version, why[i]
			v.rep.add(f)
		}
	}
	return nil
}

// sealedFacts looks whether what was sealed is stored. It need not be: a write
// that failed leaves a version that counts for nothing, and of two that were
// sealed at once the database takes one. What was opened on it openedOn finds.
func (v *verifier) sealedFacts(ctx context.Context, events []*envelope.SealEvent) error {
	facts := make([]fact, len(events))
	for i, e := range events {
		k := leaf.Key{Version: int64(e.Version)}
		switch e.Kind {
		case envelope.LegalFile:
			k.Kind, k.Number = leaf.LegalFile, e.EAN.Int64()
		case envelope.SupplierRecord:
			k.Kind, k.Number = leaf.Supplier, e.GLN.Int64()
		default:
			k.Kind = leaf.Control
		}
		facts[i] = fact{k, e.Digest}
	}
	why, err := v.notStored(ctx, facts)
	if err != nil {
		return err
	}
	for i, e := range events {
		if why[i] == "" {
			continue
		}
		what := FactNotStored
		if why[i] == forked {
			what = FactForked
		}
		f := describe(what, facts[i].Key, -1)
		f.Version, f.Server, f.Boot, f.Sequence, f.At = facts[i].Version, e.ServerID, bootText(e.BootID), e.Sequence, e.At
		f.Detail = "sealed for " + e.Client + "; " + why[i]
		v.rep.add(f)
	}
	return nil
}

// files goes through the legal files, version by version of each metering point:
// each must bear the seal of a pinned key, and be what its step makes of the
// version before.
func (v *verifier) files(ctx context.Context) error {
	var prev *authz.LegalFile               // the version before; nil when it cannot be relied on
	last := leaf.Key{Number: math.MinInt64} // so that no row is passed over, whatever it says
	for {
		rows, err := v.FilesAfter(ctx, last.Number, last.Version, pageFiles)
		if err != nil {
			return err
		}
		var steps []*authz.LegalFile
		for i := range rows {
			row := &rows[i]
			next := int64(1)
			if row.Number == last.Number {
				next = last.Version + 1
			} else {
				prev = nil
			}
			f, err := v.o.Seals.LegalFile(row.Content)
			if err != nil || f.EAN().Int64() != row.Number || f.Version() != uint64(row.Version) {
				at, err := v.Indexes(ctx, []leaf.Key{row.Key})
				if err != nil {
					return err
				}
				v.rep.add(describe(RowBad, row.Key, at[0]))
				f = nil
			}
			why := ""
			switch {
			case row.Version != next:
				why = fmt.Sprintf("no version %d is stored", next)
			case f == nil || prev == nil && next > 1: // told already
			default:
				why = v.follows(prev, f)
			}
			if why != "" {
				found := describe(FileBroken, row.Key, -1)
				found.Detail = why
				v.rep.add(found)
			}
			if f != nil && f.Actor().Kind != authz.ByOperator {
				steps = append(steps, f)
			}
			prev, last = f, row.Key
		}
		if err := v.told(ctx, steps); err != nil {
			return err
		}
		v.rep.Files += int64(len(rows))
		v.o.Progress("legal files", v.rep.Files, max(v.rep.Files, v.logged))
		if len(rows) < pageFiles {
			return nil
		}
	}
}

// follows says why a legal file is not the one that its step makes of the
// version before; "": it is.
func (v *verifier) follows(prev, f *authz.LegalFile) string {
	if prev != nil && f.Previous() != prev.Digest() {
		return "it was made of another version before it than is stored"
	}
	again, err := authz.Apply(prev, f.Step(), f.Actor(), f.SealedAt(), v.o.Zone)
	if err != nil || !bytes.Equal(again.Payload(), f.Payload()) {
		return "it is not what its step makes of the version before"
	}
	return ""
}
