output "chart_values" {
  description = "Values of each chart that depend on what was made here: `terraform output -json chart_values | jq '.\"predict\"' > values.json`"
  value = {
    foundation = {
      externalSecrets = {
        enabled   = true
        ghcr      = local.secrets["ghcr-secret"]
        slack     = local.secrets["slack-webhook"]
        pagerduty = local.secrets["pagerduty-key"]
        kafka     = lookup(local.secrets, "kafka-credentials", "")
      }
    }
    model-registry = {
      aws            = { region = var.region, podIdentity = true }
      artifacts      = { store = "s3://${aws_s3_bucket.artifacts.bucket}" }
      database       = { cidrs = aws_subnet.data[*].cidr_block, port = aws_db_instance.this.port }
      externalSecret = { from = [local.secrets["mlflow-credentials"]] }
    }
    predict = {
      aws            = { region = var.region, podIdentity = true }
      database       = { cidrs = aws_subnet.data[*].cidr_block, port = aws_db_instance.this.port }
      externalSecret = { from = [local.secrets["predict-credentials"]] }
    }
    rag = {
      aws            = { region = var.region, podIdentity = true }
      externalSecret = { from = [local.secrets["rag-credentials"]] }
    }
  }
}

output "cluster" {
  description = "What the deploy workflow needs to reach the cluster"
  value = {
    name        = aws_eks_cluster.this.name
    region      = var.region
    deploy_role = one(aws_iam_role.deploy[*].arn)
  }
}

output "database" {
  description = "What making the services' users needs, once: docs/deploy.md"
  value = {
    host         = aws_db_instance.this.address
    port         = aws_db_instance.this.port
    admin_secret = aws_db_instance.this.master_user_secret[0].secret_arn
  }
}
