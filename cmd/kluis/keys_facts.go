package main

import (
	"context"
	"errors"
	"fmt"

	"kluis/cmd/kluis/backend"
	"kluis/custodian"
)

type keysFactsCmd struct{ target }

// Help says more than fits a line.
func (keysFactsCmd) Help() string {
	return `The control feed names the first version that counts of every legal file and supplier record that ever took rights away. This command compares them with the newest versions in the database and lists what is behind: rows that somebody deleted, or a database that was put back to an older state. No cryptoserver accepts what is there of these. It lists stray rows, too: a legal file that was not made from the version before it (a fork: somebody had it sealed, kept it, and stored it over what was decided meanwhile), one under another number or metering point than its own, and what does not verify. Neither the gateways nor the registrar build on them; docs/KEY-LIFE.md says how they are removed. It asks only; it ends with exit code 3 when something is behind or stray.`
}

// factView is a subject that is behind.
type factView struct {
	Kind    string `json:"kind"` // legal_file, supplier
	Subject string `json:"subject"`
	Newest  uint64 `json:"newest"` // 0: none is there
	Minimum uint64 `json:"minimum"`
}

// strayView is the first row of a subject that nobody may build on.
type strayView struct {
	Kind    string `json:"kind"`
	Subject string `json:"subject"` // as the row has it
	Version int64  `json:"version"` // as the row has it
	Why     string `json:"why"`
}

func (c *keysFactsCmd) Run(ctx context.Context, s streams) error {
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		found, err := k.CheckFacts(ctx)
		if err != nil {
			return err
		}
		behind, stray := make([]factView, len(found.Behind)), make([]strayView, len(found.Stray))
		for i, b := range found.Behind {
			kind, subject := factSubject(b.Kind, b.Subject)
			behind[i] = factView{kind, subject, b.Newest, b.Minimum}
		}
		for i, f := range found.Stray {
			kind, subject := factSubject(f.Kind, f.Subject)
			stray[i] = strayView{kind, subject, f.Version, f.Why}
		}
		if c.JSON {
			err = printJSON(s.out, map[string]any{"checked": found.Compared, "behind": behind, "stray": stray})
			return errors.Join(err, found.Err())
		}
		for _, v := range behind {
			fmt.Fprintf(s.out, "%s %s: the newest version in the database is %d, and the first that counts is %d\n", v.Kind, v.Subject, v.Newest, v.Minimum)
		}
		for _, v := range stray {
			fmt.Fprintf(s.out, "%s %s: the row of version %d is stray: %s\n", v.Kind, v.Subject, v.Version, v.Why)
		}
		fmt.Fprintf(s.out, "%s of %s legal files and supplier records are behind.\n", thousands(len(behind)), thousands(found.Compared))
		if len(stray) > 0 {
			fmt.Fprintf(s.out, "%s have stray rows.\n", thousands(len(stray)))
		}
		return found.Err()
	})
}

func factSubject(kind custodian.FactKind, subject int64) (string, string) {
	if kind == custodian.SupplierRecords {
		return "supplier", fmt.Sprintf("%013d", subject)
	}
	return "legal_file", fmt.Sprintf("%018d", subject)
}
