package auditlog

import (
	"context"
	"fmt"
	"math"

	"kluis/auditlog/leaf"
	"kluis/authz"
	"kluis/internal/audit"
)

// Supplier records are held to what legal files are: each version must follow
// from the one before, and one that an employee made must have come with exactly
// one record, which says so. Versions of the operator's registrar have none.

// suppliers goes through the supplier records, version by version of each.
func (v *verifier) suppliers(ctx context.Context) error {
	var prev *authz.Supplier // the version before; nil when it cannot be relied on
	last := leaf.Key{Number: math.MinInt64}
	for {
		rows, err := v.SuppliersAfter(ctx, last.Number, last.Version, pageFiles)
		if err != nil {
			return err
		}
		var steps []*authz.Supplier
		for i := range rows {
			row := &rows[i]
			next := int64(1)
			if row.Number == last.Number {
				next = last.Version + 1
			} else {
				prev = nil
			}
			s := v.supplier(row)
			if s == nil {
				at, err := v.Indexes(ctx, []leaf.Key{row.Key})
				if err != nil {
					return err
				}
				v.rep.add(describe(RowBad, row.Key, at[0]))
			}
			why := ""
			switch {
			case row.Version != next:
				why = fmt.Sprintf("no version %d is stored", next)
			case s == nil || prev == nil && next > 1: // told already
			case prev != nil && s.Previous() != prev.Digest():
				why = "it was made of another version before it than is stored"
			case !s.FollowsOn(prev):
				why = "it is not what may be made of the version before"
			}
			if why != "" {
				found := describe(SupplierBroken, row.Key, -1)
				found.Detail = why
				v.rep.add(found)
			}
			if s != nil && s.Actor().Kind != authz.ByOperator {
				steps = append(steps, s)
			}
			prev, last = s, row.Key
		}
		if err := v.toldSuppliers(ctx, steps); err != nil {
			return err
		}
		v.o.Progress("supplier records", int64(len(rows)), int64(len(rows)))
		if len(rows) < pageFiles {
			return nil
		}
	}
}

// supplier is what a row holds; nil when its seal does not verify, or it is of
// another supplier or version.
func (v *verifier) supplier(row *leaf.Row) *authz.Supplier {
	s, err := v.o.Seals.Supplier(row.Content)
	if err != nil || s.GLN().Int64() != row.Number || s.Version() != uint64(row.Version) {
		return nil
	}
	return s
}

func supplierKey(s *authz.Supplier) leaf.Key {
	return leaf.Key{Kind: leaf.Supplier, Number: s.GLN().Int64(), Version: int64(s.Version())}
}

// toldSuppliers looks whether each version that an employee made came with
// exactly one record, and that with the step as it is sealed.
func (v *verifier) toldSuppliers(ctx context.Context, versions []*authz.Supplier) error {
	if len(versions) == 0 {
		return nil
	}
	keys := make([]leaf.Key, len(versions))
	for i, s := range versions {
		keys[i] = supplierKey(s)
	}
	records, err := v.RecordsWithSupplier(ctx, keys)
	if err != nil {
		return err
	}
	for i, s := range versions {
		found := describe(StepNotRecorded, keys[i], -1)
		found.At = s.SealedAt()
		switch came := records[i]; len(came) {
		case 0:
			found.Detail = "no record came with it"
		case 1:
			found.Interaction = uuidText(came[0].ID)
			rec, err := audit.Parse(came[0].Content, nil)
			if err != nil || rec.Operation != audit.SupplierStep || rec.Outcome != audit.Given {
				found.Detail = "the record that came with it is not of a step that was taken"
				break
			}
			found.What, found.Detail = StepOtherwise, otherSupplier(&rec, s)
		default:
			found.What, found.Detail = StepOtherwise, "more than one record came with it"
		}
		if found.Detail != "" {
			v.rep.add(found)
		}
	}
	return nil
}

// otherSupplier says in what a record differs from the step that made a version;
// "": in nothing. It names nobody.
func otherSupplier(rec *audit.Record, s *authz.Supplier) string {
	switch {
	case rec.Target != s.GLN() || rec.TargetVersion != s.Version() || rec.TargetDigest != s.Digest():
		return "its record names another version, or another supplier"
	case rec.Suspend != s.Suspended():
		return "its record tells of another step"
	case s.Actor() != (authz.Actor{Kind: authz.ByEmployee, Name: rec.Employee}):
		return "its record tells that somebody else took the step"
	}
	return ""
}

// suspended looks whether the versions that records of steps name know of them.
// One that changed nothing names the version that was there.
func (v *verifier) suspended(ctx context.Context, steps []toldStep) error {
	keys := make([]leaf.Key, len(steps))
	for i := range steps {
		keys[i] = leaf.Key{Kind: leaf.Supplier, Number: steps[i].Target.Int64(), Version: int64(steps[i].TargetVersion)}
	}
	rows, err := v.Rows(ctx, keys)
	if err != nil {
		return err
	}
	for i := range steps {
		rec := &steps[i]
		var s *authz.Supplier
		if rows[i] != nil {
			s = v.supplier(rows[i])
		}
		found := describe(RecordedNotTaken, leaf.Key{Kind: leaf.Access, ID: rec.InteractionID}, rec.leaf)
		found.GLN, found.Version, found.At = rec.Target.String(), int64(rec.TargetVersion), rec.At
		switch {
		case s == nil || s.Digest() != rec.TargetDigest:
			found.What, found.Detail = RecordedUnstored, "no such version of the supplier's record is stored"
		case s.Suspended() != rec.Suspend:
			found.Detail = "the supplier's record does not say so"
		default:
			continue
		}
		v.rep.add(found)
	}
	return nil
}
