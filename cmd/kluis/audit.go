package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"kluis/auditlog"
	"kluis/cmd/kluis/backend"
	"kluis/internal/config"
)

type auditCmd struct {
	Run    auditRunCmd    `cmd:"" help:"Run the daemon that keeps the log, until SIGTERM."`
	Verify auditVerifyCmd `cmd:"" help:"Check the log, the records, the journals, the legal files and the blocks against one another."`
	Prove  auditProveCmd  `cmd:"" help:"Prove that an access record is in the log."`
}

type auditRunCmd struct{ target }

// Help says more than fits a line.
func (auditRunCmd) Help() string {
	return `The daemon fetches the journal of every cryptoserver under auditor.addresses, logs access records, journal entries, legal files, supplier records and control entries within seconds, has the head of the log signed by a cryptoserver every 5 seconds while it grows, and exports each signed checkpoint to audit_export_dir. It writes JSON lines to stdout, "ready" when it has looked at the log in the database, and runs until SIGTERM. Supervise it: deploy/systemd/kluis-auditor.service.

It counts who asks for how much, hour by hour, and what of it is unusual (oversight), and compares what is new in the log with what was signed every 5 minutes.

Nothing waits for it: while it is away requests are served, and what was missed is logged afterwards. When the log in the database is not the one that was signed, it says so, and logs and signs nothing until somebody has looked.`
}

func (c *auditRunCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(s.out, nil))
	a, err := backend.OpenAuditor(ctx, conf, log)
	if err != nil {
		return err
	}
	ready := []any{"log", conf.AuditOrigin, "export", conf.AuditExportDir}
	if conf.AuditorMetricsListen != "" {
		address, stop, err := serveMetrics("auditor_metrics_listen", conf.AuditorMetricsListen, a.Register, log)
		if err != nil {
			return errors.Join(err, a.Close())
		}
		defer stop()
		ready = append(ready, "metrics_address", address)
	}
	go func() {
		select {
		case <-a.Ready():
			log.Info("ready", ready...)
		case <-ctx.Done():
		}
	}()
	if err := errors.Join(a.Run(ctx), a.Close()); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

type auditVerifyCmd struct {
	target
	Export string        `help:"Folder with exported checkpoints; a copy that the operator of the database cannot write to says most. Default: audit_export_dir." type:"path" placeholder:"DIR"`
	Grace  time.Duration `help:"How long what is on its way may take to be logged; waited for once, and only when there is something." default:"15s"`
}

// Help says more than fits a line.
func (auditVerifyCmd) Help() string {
	return `Checks every leaf of the log against its row, the tree against every checkpoint of the database and of the folder, each record against its receipt and the receipt against the journal of the cryptoserver (opened but not recorded; recorded but never opened), the journals for gaps, the sealed blocks against what was sealed, every legal file against the step and the version that it was made of, the records of steps against the legal files, and what was opened against the legal files that are stored. It alters nothing of that, and may run while everything serves; when it ends it notes kinds and numbers of its findings for oversight. What each finding means: docs/AUDIT.md.

Exit codes: 0 nothing was altered as far as can be told, 5 findings.`
}

// errFindings: the verdict is printed already.
var errFindings = errors.New("the audit log has findings")

func (c *auditVerifyCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	l, err := backend.OpenAuditLog(ctx, conf)
	if err != nil {
		return err
	}
	report, err := verify(ctx, s, l, conf, c.Export, c.Grace)
	if err == nil {
		// Whoever may only read verifies all the same.
		if err := l.AddResult(ctx, report.Result(true, 0, report.Signed)); err != nil {
			fmt.Fprintln(s.err, "the result is not noted in the database:", err)
		}
	}
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(s.out, struct {
			Clean bool `json:"clean"`
			*auditlog.Report
		}{report.Clean(), report})
	} else {
		printAudit(s, report)
	}
	if err == nil && !report.Clean() {
		err = errFindings
	}
	return err
}

func verify(ctx context.Context, s streams, l *backend.AuditLog, conf config.Operator, dir string, grace time.Duration) (*auditlog.Report, error) {
	profile, err := backend.Profile(conf)
	if err != nil {
		return nil, err
	}
	o := auditlog.Options{Log: l.Log, Seals: l.Seals, Zone: profile.Location(), Grace: grace}
	if dir == "" {
		dir = conf.AuditExportDir
	}
	if dir != "" {
		if o.Export, err = auditlog.OpenExport(dir, l.Log); err != nil {
			return nil, err
		}
	}
	bar := newProgress(s.err)
	defer func() { bar.done() }()
	var part string
	o.Progress = func(now string, done, total int64) {
		if now != part {
			bar.done()
			part, bar = now, newProgress(s.err)
		}
		bar.bar(now, done, total)
	}
	return auditlog.Verify(ctx, l, o)
}

// printAudit says what was checked, what was found, and the verdict.
func printAudit(s streams, r *auditlog.Report) {
	w := s.out
	fmt.Fprintf(w, "Audit log %s: %s leaves, %s of them signed", r.Origin, thousands(int(r.Size)), thousands(int(r.Signed)))
	if !r.SignedAt.IsZero() {
		fmt.Fprintf(w, " (last on %s)", r.SignedAt.Format(time.RFC3339))
	}
	fmt.Fprintf(w, ".\nChecked %s access records, %s journal entries, %s sealed blocks, %s versions of legal files, %s checkpoints in the database, %s exported.\n",
		thousands(int(r.Records)), thousands(int(r.Entries)), thousands(int(r.Blocks)), thousands(int(r.Files)), thousands(r.Checkpoints), thousands(r.Exported))
	var kinds []auditlog.What
	for w := range r.Counts {
		kinds = append(kinds, w)
	}
	slices.Sort(kinds)
	for _, notices := range []bool{false, true} {
		for _, kind := range kinds {
			if kind.IsNotice() != notices {
				continue
			}
			label := "FINDING"
			if notices {
				label = "notice"
			}
			fmt.Fprintf(w, "\n%s  %s: %s\n", label, kind, thousands(int(r.Counts[kind])))
			n := int64(0)
			for _, f := range r.Findings {
				if f.What == kind {
					fmt.Fprintf(w, "  %s\n", f)
					n++
				}
			}
			if rest := r.Counts[kind] - n; n > 0 && rest > 0 {
				fmt.Fprintf(w, "  and %s more\n", thousands(int(rest)))
			}
		}
	}
	switch {
	case !r.Clean():
		fmt.Fprintln(w, "\nVERDICT: FINDINGS. Keep the database, the exported checkpoints and the cryptoservers' journals as they are; docs/AUDIT.md says what each finding means.")
	case r.Exported == 0:
		fmt.Fprintln(w, "\nVERDICT: nothing was altered, as far as the database alone can tell. Compare with exported checkpoints that lie elsewhere: --export DIR.")
	default:
		fmt.Fprintln(w, "\nVERDICT: nothing was altered.")
	}
}

type auditProveCmd struct {
	target
	Interaction uuidFlag `help:"interactionId of the answer." required:"" placeholder:"UUID"`
	EAN         eanFlag  `help:"Only the record of this metering point; needed of a stream of more than 1000." name:"ean" placeholder:"EAN"`
	Checkpoint  string   `help:"Signed checkpoint that whoever checks the proof holds. Default: the newest." type:"path" placeholder:"FILE"`
}

// Help says more than fits a line.
func (auditProveCmd) Help() string {
	return `Prints a proof as JSON, which auditproof checks offline with the public seal keys:

auditproof --keys seal-keys.pem --origin NAME proof.json

It contains the access record: who asked for which metering point, when, and what was decided. No readings.`
}

func (c *auditProveCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	var held []byte
	if c.Checkpoint != "" {
		if held, err = os.ReadFile(c.Checkpoint); err != nil {
			return err
		}
	}
	l, err := backend.OpenAuditLog(ctx, conf)
	if err != nil {
		return err
	}
	proofs, err := auditlog.Prove(ctx, l, l.Log, c.Interaction.UUID, c.EAN.Int64(), held)
	if err = errors.Join(err, l.Close()); err != nil {
		return err
	}
	return printJSON(s.out, proofs)
}
