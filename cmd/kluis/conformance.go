package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"kluis/conformance"
)

type conformanceCmd struct {
	Run  conformanceRunCmd  `cmd:"" help:"Make the requests, and say of each whether it was answered as it must be."`
	List conformanceListCmd `cmd:"" help:"Explain the cases, with the commands that make each request by hand."`
}

// packTarget says which installation, and which cases.
type packTarget struct {
	State        string   `help:"State folder of a demo. Default: $$KLUIS_STATE." type:"path" placeholder:"DIR" xor:"installation"`
	ReadyFile    string   `help:"Ready file of a demo." type:"path" placeholder:"FILE" xor:"installation"`
	Installation string   `help:"How to reach any other installation: docs/CONFORMANCE.md has the format." type:"path" placeholder:"FILE" xor:"installation"`
	Case         []string `help:"Only the cases of these names; a trailing * stands for any ending. Repeatable." placeholder:"NAME"`
	JSON         bool     `help:"Print JSON."`
}

func (t *packTarget) load() (*conformance.Installation, error) {
	path, state := t.Installation, t.State
	if t.ReadyFile != "" {
		b, err := os.ReadFile(t.ReadyFile)
		if err != nil {
			return nil, err
		}
		var ready struct{ State string }
		if err := json.Unmarshal(b, &ready); err != nil || ready.State == "" {
			return nil, usage("%s is no ready file of a demo", t.ReadyFile)
		}
		state = ready.State
	}
	if path == "" && state == "" {
		state = os.Getenv("KLUIS_STATE")
	}
	switch {
	case path != "":
	case state != "":
		path = filepath.Join(state, conformance.InstallationName)
	default:
		return nil, usage("say which installation: --state DIR or --ready-file FILE (of a demo), or --installation FILE")
	}
	return conformance.LoadInstallation(path)
}

// pack asks the installation for what the pack depends on, and takes the cases
// named.
func (t *packTarget) pack(ctx context.Context, target conformance.Target) (*conformance.Pack, []conformance.Case, error) {
	p, err := conformance.Ask(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	if len(t.Case) == 0 {
		return p, p.Cases, nil
	}
	var cases []conformance.Case
	for _, c := range p.Cases {
		if slices.ContainsFunc(t.Case, func(name string) bool { return named(name, c.Name) }) {
			cases = append(cases, c)
		}
	}
	for _, name := range t.Case {
		if !slices.ContainsFunc(cases, func(c conformance.Case) bool { return named(name, c.Name) }) {
			return nil, nil, usage("there is no case %s: kluis conformance list", name)
		}
	}
	return p, cases, nil
}

func named(pattern, name string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	return name == pattern || open && strings.HasPrefix(name, prefix)
}

type conformanceRunCmd struct{ packTarget }

// Help says more than fits a line.
func (conformanceRunCmd) Help() string {
	return `Requests are made as the test suppliers make them: over mutual TLS, with an access token. Each answer is compared whole: a field, a day or a value more fails a case as one less does. The cases change nothing, and may be run as often as one likes.

Exit codes: 0 every case passed, 1 some failed, or could not be run.`
}

// shownDifferences is how much of what differs in one case is printed.
const shownDifferences = 10

func (c *conformanceRunCmd) Run(ctx context.Context, s streams) error {
	i, err := c.load()
	if err != nil {
		return err
	}
	target, err := i.Target()
	if err != nil {
		return err
	}
	defer target.Close()
	p, cases, err := c.pack(ctx, target)
	if err != nil {
		return err
	}
	results := []conformance.Result{}
	count := map[conformance.Outcome]int{}
	err = conformance.Run(ctx, p, cases, target, func(r conformance.Result) {
		results = append(results, r)
		count[r.Outcome]++
		if c.JSON {
			return
		}
		fmt.Fprintf(s.out, "%s  %s\n", r.Outcome, r.Case)
		for n, d := range r.Differences {
			if n == shownDifferences {
				fmt.Fprintf(s.out, "      and %d more\n", len(r.Differences)-n)
				break
			}
			fmt.Fprintf(s.out, "      %s\n", d)
		}
		if r.Outcome == conformance.Fail && r.Interaction != "" {
			fmt.Fprintf(s.out, "      interactionId %s\n", r.Interaction)
		}
	})
	if err != nil {
		return err
	}
	if c.JSON {
		err = printJSON(s.out, results)
	} else {
		fmt.Fprintf(s.out, "\n%d passed, %d failed, %d left out.\n", count[conformance.Pass], count[conformance.Fail], count[conformance.Skipped])
	}
	if err == nil && count[conformance.Fail] > 0 {
		err = fmt.Errorf("%d of %d cases were not answered as they must be", count[conformance.Fail], len(cases))
	}
	return err
}

type conformanceListCmd struct{ packTarget }

// Help says more than fits a line.
func (conformanceListCmd) Help() string {
	return `Without --case: what there is. With it: of each case named what it shows, the request, what must be answered in a line, and the commands that make it by hand. --json prints the whole answers wanted, for tests of one's own.`
}

// caseView is a case as --json prints it.
type caseView struct {
	Name     string              `json:"case"`
	Says     string              `json:"says"`
	Supplier string              `json:"supplier"`
	GLN      string              `json:"gln"`
	Request  conformance.Request `json:"request"`
	Want     conformance.Answer  `json:"want"`
}

func (c *conformanceListCmd) Run(ctx context.Context, s streams) error {
	i, err := c.load()
	if err != nil {
		return err
	}
	target, err := i.Target()
	if err != nil {
		return err
	}
	defer target.Close()
	p, cases, err := c.pack(ctx, target)
	if err != nil {
		return err
	}
	if c.JSON {
		views := make([]caseView, len(cases))
		for n, k := range cases {
			by := p.Suppliers[k.Supplier]
			views[n] = caseView{k.Name, k.Says, by.Name, by.GLN.String(), k.Request, k.Want}
		}
		return printJSON(s.out, views)
	}
	if len(c.Case) > 0 {
		for _, k := range cases {
			by := p.Suppliers[k.Supplier]
			fmt.Fprintf(s.out, "%s\n  %s.\n  %s asks: %s %s\n  must be answered %s\n\n%s\n\n", k.Name, k.Says, by.Name, k.Request.Method, k.Request.Target(),
				k.Want.Summary(), i.Curl(p, k))
		}
		return nil
	}
	fmt.Fprintf(s.out, "Seeded on %s. Test suppliers:\n\n", i.Seeded)
	rows := [][]string{{"NAME", "GLN", "IS THERE FOR"}}
	for _, by := range p.Suppliers {
		rows = append(rows, []string{by.Name, by.GLN.String(), by.Is})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nMetering points:\n\n")
	rows = [][]string{{"NAME", "EAN", "SHOWS"}}
	for _, m := range p.Points {
		rows = append(rows, []string{m.Name, m.EAN.String(), m.Shows})
	}
	if err := table(s.out, rows); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nCases; kluis conformance list --case NAME has the commands to try one by hand:\n\n")
	rows = [][]string{{"CASE", "AS", "SHOWS"}}
	for _, k := range cases {
		rows = append(rows, []string{k.Name, p.Suppliers[k.Supplier].Name, k.Says})
	}
	return table(s.out, rows)
}
