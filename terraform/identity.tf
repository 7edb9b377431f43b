# One role for each service account, and what it may do. A pod gets its role from the Pod Identity agent of its node;
# no key is kept anywhere.
locals {
  secret_arn_prefix = "arn:${local.partition}:secretsmanager:${var.region}:${local.account}:secret"

  use_key = {
    Effect   = "Allow"
    Action   = ["kms:Decrypt", "kms:GenerateDataKey"]
    Resource = aws_kms_key.data.arn
  }
  read_own_secret = {
    for service, secret in local.service_secret : service => {
      Effect   = "Allow"
      Action   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
      Resource = aws_secretsmanager_secret.this[secret].arn
    }
  }
  use_kafka = [for cluster in aws_msk_cluster.this : {
    Effect = "Allow"
    Action = [
      "kafka-cluster:Connect", "kafka-cluster:DescribeCluster", "kafka-cluster:WriteDataIdempotently",
      "kafka-cluster:DescribeTopic", "kafka-cluster:ReadData", "kafka-cluster:WriteData",
      "kafka-cluster:DescribeGroup", "kafka-cluster:AlterGroup",
    ]
    Resource = [
      cluster.arn,
      "${replace(cluster.arn, ":cluster/", ":topic/")}/${var.environment}.*",
      "${replace(cluster.arn, ":cluster/", ":group/")}/${var.environment}.*",
    ]
  }]

  pods = {
    model-registry = {
      namespace       = var.namespace
      service_account = "model-registry"
      policies        = []
      statements = concat([
        {
          Effect   = "Allow"
          Action   = ["s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetBucketLocation"]
          Resource = aws_s3_bucket.artifacts.arn
        },
        {
          Effect   = "Allow"
          Action   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
          Resource = "${aws_s3_bucket.artifacts.arn}/*"
        },
        local.use_key, local.read_own_secret["model-registry"],
      ], local.use_kafka)
    }
    predict = {
      namespace       = var.namespace
      service_account = "predict"
      policies        = []
      statements      = concat([local.use_key, local.read_own_secret["predict"]], local.use_kafka)
    }
    rag = {
      namespace       = var.namespace
      service_account = "rag"
      policies        = []
      statements      = concat([local.use_key, local.read_own_secret["rag"]], local.use_kafka)
    }
    external-secrets = {
      namespace       = "external-secrets"
      service_account = "external-secrets"
      policies        = []
      statements = [local.use_key, {
        Effect   = "Allow"
        Action   = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"]
        Resource = [for secret in aws_secretsmanager_secret.this : secret.arn]
      }]
    }
    volumes = {
      namespace       = "kube-system"
      service_account = "ebs-csi-controller-sa"
      policies        = ["service-role/AmazonEBSCSIDriverPolicy"]
      statements      = []
    }
  }
  # The volumes' association is made by its addon.
  associated = { for name, pod in local.pods : name => pod if name != "volumes" }
}

resource "aws_iam_role" "pod" {
  for_each = local.pods
  name     = "${local.name}-${each.key}"
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = ["sts:AssumeRole", "sts:TagSession"]
      Principal = { Service = "pods.eks.amazonaws.com" }
      Condition = { StringEquals = { "aws:SourceAccount" = local.account } }
    }]
  })
}

resource "aws_iam_role_policy" "pod" {
  for_each = local.associated
  name     = each.key
  role     = aws_iam_role.pod[each.key].id
  policy   = jsonencode({ Version = "2012-10-17", Statement = each.value.statements })
}

resource "aws_iam_role_policy_attachment" "pod" {
  for_each   = { for pair in flatten([for name, pod in local.pods : [for policy in pod.policies : { name = name, policy = policy }]]) : "${pair.name} ${pair.policy}" => pair }
  role       = aws_iam_role.pod[each.value.name].name
  policy_arn = "arn:${local.partition}:iam::aws:policy/${each.value.policy}"
}

resource "aws_eks_pod_identity_association" "pod" {
  for_each        = local.associated
  cluster_name    = aws_eks_cluster.this.name
  namespace       = each.value.namespace
  service_account = each.value.service_account
  role_arn        = aws_iam_role.pod[each.key].arn
}
