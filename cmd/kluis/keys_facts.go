package main

import (
	"context"
	"fmt"

	"kluis/cmd/kluis/backend"
	"kluis/custodian"
)

type keysFactsCmd struct{ target }

// Help says more than fits a line.
func (keysFactsCmd) Help() string {
	return `The control feed names the first version that counts of every legal file and supplier record that ever took rights away. This command compares them with the newest versions in the database and lists what is behind: rows that somebody deleted, or a database that was put back to an older state. No cryptoserver accepts what is there of these. It asks only; it ends with exit code 3 when something is behind.`
}

// factView is a subject that is behind.
type factView struct {
	Kind    string `json:"kind"` // legal_file, supplier
	Subject string `json:"subject"`
	Newest  uint64 `json:"newest"` // 0: none is there
	Minimum uint64 `json:"minimum"`
}

func (c *keysFactsCmd) Run(ctx context.Context, s streams) error {
	return withCustodian(ctx, c.target, s, func(k *backend.Custodian) error {
		checked, behind, err := k.FactsBehind(ctx)
		if err != nil {
			return err
		}
		views := make([]factView, len(behind))
		for i, b := range behind {
			views[i] = factView{"legal_file", fmt.Sprintf("%018d", b.Subject), b.Newest, b.Minimum}
			if b.Kind == custodian.SupplierRecords {
				views[i].Kind, views[i].Subject = "supplier", fmt.Sprintf("%013d", b.Subject)
			}
		}
		if c.JSON {
			err = printJSON(s.out, map[string]any{"checked": checked, "behind": views})
		} else {
			for _, v := range views {
				fmt.Fprintf(s.out, "%s %s: the newest version in the database is %d, and the first that counts is %d\n", v.Kind, v.Subject, v.Newest, v.Minimum)
			}
			fmt.Fprintf(s.out, "%s of %s legal files and supplier records are behind.\n", thousands(len(views)), thousands(checked))
		}
		if err == nil && len(views) > 0 {
			err = custodian.ErrFactsBehind
		}
		return err
	})
}
