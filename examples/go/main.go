// A workflow host in Go: it runs an order from creation to completion through every kind of call
// that the persistence server offers. See README.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
)

func main() {
	log.SetFlags(0)
	log.SetOutput(os.Stdout)
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := count(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	target := flag.String("target", os.Getenv("WFE_TARGET"), "`HOST:PORT` of the server (or $WFE_TARGET)")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "unexpected argument %q; usage: go run . [--target HOST:PORT]\n", flag.Arg(0))
		os.Exit(2)
	}
	if *target == "" {
		*target = "127.0.0.1:50052"
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	summary, err := run(ctx, *target)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(summary)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, target string) (*Summary, error) {
	conn, err := connect(target)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := waitUntilServing(ctx, conn); err != nil {
		return nil, err
	}
	return newHost(conn).run(ctx)
}

// withDeadline gives every call its own deadline: without one, the server's default applies.
func withDeadline(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption,
) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return invoke(ctx, method, req, reply, conn, opts...)
}
